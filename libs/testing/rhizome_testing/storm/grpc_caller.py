"""Asks over gRPC, all requests in one stream of frames, as a gateway does."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from rhizome.engine.v1.generate_pb2 import FINISH_REASON_LENGTH, GenerateRequest
from rhizome_testing.storm.outcome import Ending, Outcome
from rhizome_testing.storm.question import Question, topics
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient

_LEARN_S: Final = 30.0


class GrpcCaller:
    """Knows the answers. Must be made inside the running loop.

    Args:
        target: `host:port` of a proxy or an engine.
        answers: token ids of each topic, see `learn`.
    """

    def __init__(self, target: str, answers: dict[Question, list[int]]) -> None:
        self.client = GrpcEngineClient(target, peer_name="storm")
        self._answers = answers

    async def ask(self, question: Question, deadline_s: float) -> Outcome:
        """Send a request and follow it to its end."""
        expected = self._answers[question.topic][: question.max_tokens]
        began_s, first_s = time.monotonic(), 0.0
        got: list[int] = []

        def end(ending: Ending, detail: str = "") -> Outcome:
            return Outcome(ending, len(got), began_s, first_s, time.monotonic(), detail)

        try:
            async for event in self.client.generate(request(question), timeout_s=deadline_s):
                if event.HasField("delta"):
                    first_s = first_s or time.monotonic()
                    got += event.delta.token_ids
                elif event.HasField("finished"):
                    usage = event.finished.usage
                    if event.finished.reason != FINISH_REASON_LENGTH:
                        return end(Ending.SILENT, f"finished with reason {event.finished.reason}")
                    if got != expected:
                        return end(Ending.WRONG, f"{len(got)} tokens, {_agree(got, expected)} of them right")
                    if (usage.prompt_tokens, usage.completion_tokens) != (
                        len(question.token_ids),
                        len(expected),
                    ):
                        return end(Ending.WRONG, f"usage says {usage}")
                    return end(Ending.EXACT)
        except EngineError as error:
            said = f"{error.code.name} {error.reason}: {error.message}"
            if got != expected[: len(got)]:
                return end(Ending.WRONG, said)
            return end(Ending.CUT if got else Ending.REFUSED, said)
        return end(Ending.SILENT, "no end")

    async def close(self) -> None:
        """Hang up."""
        await self.client.close()


def request(question: Question) -> GenerateRequest:
    """The question in the contract's words."""
    asked = GenerateRequest()
    asked.token_ids.ids.extend(question.token_ids)
    asked.stop.max_tokens = question.max_tokens
    if question.seed is None:
        asked.sampling.temperature = 0
    else:
        asked.sampling.temperature = 1
        asked.sampling.seed = question.seed
    return asked


async def learn(target: str, most_tokens: int) -> dict[Question, list[int]]:
    """Ask everything of an engine that nothing happens to; tokens by topic.

    Raises:
        EngineError: it does not answer.
    """
    client = GrpcEngineClient(target, peer_name="pupil")

    async def answer(topic: Question) -> list[int]:
        asked = request(topic)
        asked.stop.max_tokens = most_tokens
        events = [event async for event in client.generate(asked, timeout_s=_LEARN_S)]
        return [token for event in events for token in event.delta.token_ids]

    try:
        await client.wait_ready(_LEARN_S)
        asked = list(topics(chat=False))
        return dict(zip(asked, await asyncio.gather(*map(answer, asked)), strict=True))
    finally:
        await client.close()


def _agree(got: list[int], expected: list[int]) -> int:
    return sum(one == other for one, other in zip(got, expected, strict=False))
