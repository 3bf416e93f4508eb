"""Completions and vectors of the bundled model over HTTP, against the engine and transformers."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
import transformers
from openai import OpenAI

from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_testing.running_stack import DEMO_MODEL, RunningStack
from rhizome_text.tokenizer import Tokenizer

MODEL = "rhizome-demo"
TEXTS = ["The capital of France is", "1, 2, 3, 4,", "你好 says", "Once <|eot_id|> upon"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(DEMO_MODEL)


@pytest.fixture(scope="module")
def oracle() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)


def engine_text(stack: RunningStack, text: str, max_tokens: int) -> str:
    request = GenerateRequest(text=text)
    request.sampling.temperature = 0
    request.stop.max_tokens = max_tokens
    with grpc.insecure_channel(stack.stack.engine_addresses[0]) as channel:
        events = list(EngineServiceStub(channel).Generate(request, timeout=60))
    return "".join(event.delta.text for event in events)


def test_texts_go_on_as_the_engine_goes_on(stack: RunningStack, client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=TEXTS, temperature=0, max_tokens=24)
    assert [choice.text for choice in answer.choices] == [engine_text(stack, text, 24) for text in TEXTS]
    assert any(choice.text for choice in answer.choices)


def test_token_ids_and_text_are_the_same_prompt(client: OpenAI, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
    by_ids = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=12)
    by_text = client.completions.create(model=MODEL, prompt=TEXTS, temperature=0, max_tokens=12)
    assert [c.text for c in by_ids.choices] == [c.text for c in by_text.choices]
    assert by_ids.usage and by_text.usage and by_ids.usage.prompt_tokens == sum(map(len, ids))
    assert by_ids.usage.prompt_tokens == by_text.usage.prompt_tokens


def test_only_allowed_tokens_come_and_no_bad_words(client: OpenAI, tokenizer: Tokenizer) -> None:
    wanted: dict[str, Any] = {"model": MODEL, "prompt": TEXTS[0], "temperature": 0, "max_tokens": 24}

    def tokens(**fields: Any) -> list[str]:
        scores = client.completions.create(**wanted, logprobs=0, extra_body=fields).choices[0].logprobs
        assert scores is not None and scores.tokens is not None
        return scores.tokens

    words = {token.strip() for token in tokens() if token.strip()}
    whole = [word for word in sorted(words) if len(tokenizer.encode(word)) == 1][:3]
    assert whole
    # A space may be a token of its own; the word behind it is then the one that the list names by itself.
    assert not {f"{space}{word}" for word in whole for space in ("", " ")} & set(tokens(bad_words=whole))
    ids = tokenizer.encode(" a b c")
    chosen = tokens(allowed_token_ids=ids)
    assert len(chosen) == 24 and set(chosen) <= {tokenizer.decode([token_id]) for token_id in ids}


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_prompts_are_scored_as_transformers_does(
    client: OpenAI, tokenizer: Tokenizer, oracle: Any, max_tokens: int
) -> None:
    """With one token more, as lm-eval asks: its entry is the last one, whatever it is."""
    prompts = [tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
    prompts.append([(7 * place) % 1000 for place in range(700)])
    answer = client.completions.create(
        model=MODEL, prompt=prompts, echo=True, logprobs=5, max_tokens=max_tokens, temperature=0
    )
    for ids, choice in zip(prompts, answer.choices, strict=True):
        with torch.no_grad():
            logprobs = oracle(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
        found = choice.logprobs
        assert found and found.token_logprobs and found.top_logprobs and found.tokens and found.text_offset
        assert len(found.tokens) == len(ids) + max_tokens
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        scores = np.array(found.token_logprobs[1 : len(ids)])
        assert np.abs(scores - expected).max() <= 2e-4
        best = logprobs.max(-1).values.numpy()
        tops = np.array([max(top.values()) for top in found.top_logprobs[1 : len(ids)] if top])
        assert np.abs(tops - best[: len(tops)]).max() <= 2e-4
        text = choice.text
        for token, start, end in zip(
            found.tokens, found.text_offset, [*found.text_offset[1:], len(text)], strict=True
        ):
            shown = text[start:end]
            assert shown == token or not shown or token.startswith("bytes:") or "\ufffd" in shown


def test_a_stream_is_the_whole_answer(client: OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": MODEL, "prompt": TEXTS, "temperature": 0, "max_tokens": 20, "echo": True, "logprobs": 2,
    }  # fmt: skip
    whole = client.completions.create(**fields)
    texts = dict.fromkeys(range(len(TEXTS)), "")
    offsets: dict[int, list[int]] = {index: [] for index in texts}
    reasons: dict[int, str | None] = {}
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += (choice.logprobs and choice.logprobs.text_offset) or []
            reasons[choice.index] = choice.finish_reason
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert choice.logprobs and offsets[choice.index] == choice.logprobs.text_offset
        assert reasons[choice.index] == choice.finish_reason


def test_the_tokenizer_over_http_is_the_checkpoints(stack: RunningStack, tokenizer: Tokenizer) -> None:
    with httpx.Client(base_url=stack.url, trust_env=False) as http:
        for text in TEXTS:
            answer = http.post("/tokenize", json={"prompt": text}).json()
            assert answer["tokens"] == tokenizer.encode(text, add_special_tokens=True)
            again = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
            assert again["prompt"] == tokenizer.decode(answer["tokens"], skip_special_tokens=False)


def test_vectors_are_transformers_own(client: OpenAI, tokenizer: Tokenizer, oracle: Any) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    raw = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="base64")
    for text, entry, encoded in zip(TEXTS, answer.data, raw.data, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=True)
        with torch.no_grad():
            mean = oracle.model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        expected = torch.nn.functional.normalize(mean, dim=0).numpy()
        assert np.abs(np.array(entry.embedding) - expected).max() <= 1e-5
        decoded = np.frombuffer(base64.b64decode(str(encoded.embedding)), "<f4")
        assert np.array_equal(decoded, np.array(entry.embedding, np.float32))
