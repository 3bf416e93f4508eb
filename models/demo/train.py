"""Train the demo model from nothing: ``python models/demo/train.py [--resume]``.

Everything follows from the seed: the corpus of step *n* is drawn from ``(seed, n)``, so a resumed run
continues exactly as the uninterrupted one would have. Matrices are trained with Muon (orthogonalised
momentum; Jordan et al., 2024), which learns from fewer tokens than AdamW; embeddings and norms with AdamW.
Every checkpoint is also exported as a complete Hugging Face model, so it can be served while it trains.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import tokenizer as tok
import torch
import torch.nn.functional as F
from network import Llama, NetworkConfig
from rendering import Encoder, Row
from safetensors.torch import save_file
from scoring import all_accuracies
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Phase:
    """What holds from one step on: batch size, learning rate, long rows and the mix of skills."""

    first_step: int
    batch_tokens: int
    rate: float
    long_tokens: int | None = None
    long_share: float = 0.0
    mix: str = "even"
    drill_share: float = 0.0
    whole_table: bool = False
    decay: tuple[int, int] | None = None
    """The steps between which the rate would fall to 2 %, were the phase to last so long."""


PHASES = (
    Phase(0, 2048, 1.0),  # small, hot steps: words and formats
    Phase(800, 2048, 1.0, long_tokens=500, long_share=0.5),
    Phase(1000, 4096, 0.5),  # quieter steps, in which copying emerges
    Phase(1400, 4096, 0.5, long_tokens=500, long_share=0.35),
    Phase(1500, 4096, 0.8),
    Phase(1750, 4096, 0.35),
    Phase(2000, 4096, 0.35, mix="focus"),
    Phase(2250, 4096, 0.35, 500, 0.3, "focus", 0.25, decay=(2400, 3900)),
    Phase(2500, 4096, 0.35, 500, 0.3, "focus", 0.25, whole_table=True, decay=(2400, 3900)),
    Phase(2700, 4096, 0.35, 1120, 0.4, "focus", 0.25, whole_table=True, decay=(2400, 3900)),
    Phase(3250, 4096, 0.15, 1120, 0.35, "polish", 0.15, whole_table=True, decay=(3250, 4000)),
    Phase(4000, 4096, 0.2, 1120, 0.4, "recall", 0.08, whole_table=True, decay=(4000, 5800)),
    Phase(4250, 4096, 0.17, 1120, 0.4, "recall", 0.08, whole_table=True, decay=(4250, 5400)),
)


@dataclass(frozen=True)
class Schedule:
    """How long to train and how fast; ``PHASES`` says on what."""

    steps: int = 5400
    seed: int = 7
    warmup_steps: int = 100
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    tool_share: float = 0.2

    def phase(self, step: int) -> Phase:
        """Return the phase that ``step`` belongs to."""
        return [phase for phase in PHASES if phase.first_step <= step][-1]

    def rate(self, step: int) -> float:
        """Return the learning rate's factor: short warm-up, then the phase's rate and its linear decay."""
        phase, left = self.phase(step), 1.0
        if phase.decay is not None:
            start, end = phase.decay
            left = 0.02 + 0.98 * (end - step) / (end - start)
        return phase.rate * min(1.0, (step + 1) / self.warmup_steps, left)

    def long_tokens(self, step: int) -> int | None:
        """Return the length of this step's long rows, or ``None`` if all its rows are short ones."""
        chance = random.Random(f"long/{self.seed}/{step}").random()
        return self.phase(step).long_tokens if chance < self.phase(step).long_share else None


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by a Newton-Schulz iteration, for weight matrices.

    Parameters of one shape are stacked, since many small matrix products are slower than one batched product.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "base": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter once."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                shapes.setdefault(parameter.shape, []).append((parameter, update))
            for shape, members in shapes.items():
                stacked = orthogonalise(torch.stack([update for _, update in members]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for (parameter, _), update in zip(members, stacked, strict=True):
                    parameter.mul_(1 - 0.01 * group["lr"]).add_(update, alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return the nearest semi-orthogonal matrices to ``[count, rows, columns]``, approximately."""
    x = matrices.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide else x.mT).float()


def rows_of_step(schedule: Schedule, encoder: Encoder, step: int) -> list[Row]:
    """Draw the rows of one step; the last is padding, which keeps the number of tokens constant."""
    rng = random.Random(f"corpus/{schedule.seed}/{step}")
    rows: list[Row] = []
    left = schedule.phase(step).batch_tokens
    phase, long_tokens, misses = schedule.phase(step), schedule.long_tokens(step), 0
    weights = corpus.MIXES[phase.mix]
    while misses < 4:
        source = corpus.conversations(
            rng, long_tokens, schedule.tool_share, weights, phase.drill_share, phase.whole_table
        )
        row = encoder.row(next(source))
        if len(row.tokens) <= left:
            rows.append(row)
            left -= len(row.tokens)
        else:  # what long rows leave is filled with short ones
            long_tokens, misses = None, misses + 1
    return [*rows, Row([tok.PAD] * left, [False] * left)] if left else rows


def loss_of(model: Llama, rows: list[Row]) -> float:
    """Accumulate the gradients of one step; return its mean loss per supervised token."""
    tokens = torch.tensor([token for row in rows for token in row.tokens])
    supervised = torch.tensor([flag for row in rows for flag in row.supervised])
    predicts = supervised.roll(-1)  # a row never starts with a supervised token
    with torch.autocast("cpu", torch.bfloat16):
        states = model.hidden(tokens, [len(row.tokens) for row in rows])
        logits = model.project(states[predicts])
    loss = F.cross_entropy(logits.float(), tokens[supervised])
    loss.backward()
    return loss.item()


def export(model: Llama, folder: Path) -> None:
    """Write ``model.safetensors`` in one atomic step; readers see the old or the new file."""
    tensors = {name: value.detach().bfloat16().contiguous() for name, value in model.named_parameters()}
    temporary = folder / "model.safetensors.tmp"
    save_file(tensors, str(temporary), metadata={"format": "pt"})
    temporary.chmod(0o644)
    temporary.replace(folder / "model.safetensors")


def write_configs(config: NetworkConfig, folder: Path) -> None:
    """Write ``config.json`` and ``generation_config.json``."""
    ids = {"bos_token_id": tok.BOS, "eos_token_id": [tok.EOT, tok.EOS], "pad_token_id": tok.PAD}
    (folder / "config.json").write_text(json.dumps({**config.to_hf(), **ids}, indent=2) + "\n", "utf-8")
    generation = {**ids, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")


def main() -> None:
    """Train, log and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in .train/")
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    schedule = Schedule(steps=arguments.steps)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(schedule.seed)

    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.out != HERE:
        (arguments.out / "chat_template.jinja").write_bytes((HERE / "chat_template.jinja").read_bytes())
    tokenizer = tok.save(arguments.out, NetworkConfig.max_position_embeddings)
    encoder = Encoder(tokenizer, (HERE / "chat_template.jinja").read_text("utf-8"))
    config = NetworkConfig(vocab_size=(tokenizer.get_vocab_size() + 63) // 64 * 64)
    write_configs(config, arguments.out)
    model = Llama(config)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    muon = Muon(matrices, schedule.muon_lr)
    adam = torch.optim.AdamW(others, schedule.adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} parameters, {config.vocab_size} tokens", flush=True)

    checkpoint = arguments.out / ".train" / "checkpoint.pt"
    checkpoint.parent.mkdir(exist_ok=True)
    first, seen, spent_s = 0, 0, 0.0
    if arguments.resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        first, seen, spent_s = saved["step"], saved["seen"], saved["spent_s"]

    started = time.monotonic() - spent_s
    average = 0.0
    for step in range(first, schedule.steps):
        rate = schedule.rate(step)
        muon.param_groups[0]["lr"] = schedule.muon_lr * rate
        adam.param_groups[0]["lr"] = schedule.adam_lr * rate
        rows = rows_of_step(schedule, encoder, step)
        seen += sum(len(row.tokens) for row in rows)
        loss = loss_of(model, rows)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        average = loss if average == 0.0 else 0.98 * average + 0.02 * loss
        done = step + 1
        if done % 50 == 0:
            elapsed = time.monotonic() - started
            speed = f"{seen:,} tokens, {seen / elapsed:,.0f}/s, {elapsed:.0f} s"
            print(f"step {done} loss {average:.4f} {speed}", flush=True)
        if done % 250 == 0 or done == schedule.steps:
            export(model, arguments.out)
            state = {"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(),
                     "step": done, "seen": seen, "spent_s": time.monotonic() - started}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        if done % 500 == 0:
            scores = all_accuracies(model, encoder, 20)
            print("  ".join(f"{skill} {score:.0%}" for skill, score in scores.items()), flush=True)


if __name__ == "__main__":
    main()
