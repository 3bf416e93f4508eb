"""Score a network on unseen instances with one forward pass each.

Greedy decoding reproduces an answer exactly if and only if every token of the answer is the arg-max given the
tokens before it, so teacher forcing gives the exact-match accuracy of greedy decoding without decoding.
"""

from __future__ import annotations

import corpus
import torch
from network import Llama
from rendering import Encoder
from tokenizer import EOT


@torch.no_grad()
def skill_accuracy(model: Llama, encoder: Encoder, skill: str, n: int, seed: int = 0) -> float:
    """Return the share of ``n`` unseen instances that greedy decoding would answer exactly."""
    right = 0
    for item in corpus.eval_instances(skill, n, seed):
        prompt = encoder.encode(encoder.render(item.messages, item.tools, prompt=True))
        answer = [*encoder.encode(item.answer), EOT]
        tokens = torch.tensor(prompt + answer)
        with torch.autocast("cpu", torch.bfloat16):
            states = model.hidden(tokens, [len(tokens)])[len(prompt) - 1 : -1]
        right += bool((model.project(states).argmax(-1) == torch.tensor(answer)).all())
    return right / n


def all_accuracies(model: Llama, encoder: Encoder, n: int, seed: int = 0) -> dict[str, float]:
    """Return the accuracy of every skill."""
    return {skill: skill_accuracy(model, encoder, skill, n, seed) for skill in corpus.SKILLS}
