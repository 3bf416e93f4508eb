"""Requests of vLLM's contract, as tests make them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from tests.compat.conftest import DEMO

from rhizome_text.chat_prompt import Conversation
from rhizome_text.tokenizer import Tokenizer

vllm = pytest.importorskip("smg_grpc_proto", reason="pip install smg-grpc-proto").vllm_engine_pb2

TOKENIZER = Tokenizer.from_directory(DEMO)
QUESTION = TOKENIZER.encode("What is the capital of France?")
EOS = 4


def chat(question: str) -> list[int]:
    prompts = TOKENIZER.chat_prompts()
    assert prompts is not None
    return prompts.encode(prompts.render(Conversation([{"role": "user", "content": question}])))


def ask(prompt: Iterable[int], *, stream: bool = False, request_id: str = "", **params: Any) -> Any:
    """A request with nothing set but what is given; greedy unless it is."""
    request = vllm.GenerateRequest(request_id=request_id, stream=stream)
    request.tokenized.input_ids.extend(prompt)
    settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, **params}
    request.sampling_params.CopyFrom(
        vllm.SamplingParams(**{name: value for name, value in settings.items() if value is not None})
    )
    return request


async def answers(stub: Any, request: Any) -> list[Any]:
    async with asyncio.timeout(60):
        return [response async for response in stub.Generate(request)]


async def complete(stub: Any, request: Any) -> Any:
    (only,) = await answers(stub, request)
    return only.complete
