"""A `TalkingEngine` in a process of its own, for whoever measures or breaks what is in front of it.

    python -m rhizome_testing.talking_process --port 0 --pause-s 0.02

It says the same to everybody, after a pause. With `--tokenizer` it pretends to be of that checkpoint, whose
prompts may then hold tools.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoRequest, GetModelInfoResponse
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.talking_engine import Context, Pause, Say, Script, Step, TalkingEngine
from rhizome_text.tokenizer_files import read_tokenizer_files


class TalkingProcess(ProcessFixture):
    """The process as its owner sees it.

    Args:
        log_dir: for its log.
        *arguments: of its command line.

    Attributes:
        target: address for gRPC clients.
    """

    def __init__(self, log_dir: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "rhizome_testing.talking_process", *arguments]
        super().__init__(command, log=log_dir / "talking-engine.log", name="talking-engine")
        try:
            self.target = self.wait_for_line(r"^serving on (\S+)$").group(1)
        except BaseException:
            self.terminate()
            raise


class _Disguised(TalkingEngine):
    """One with the tokenizer and the vocabulary of a checkpoint; the text that it says is token ids."""

    checkpoint: Path

    async def GetModelInfo(  # noqa: N802 - named by the contract
        self, request: GetModelInfoRequest, context: Context
    ) -> GetModelInfoResponse:
        """Describe the checkpoint's vocabulary."""
        info = await super().GetModelInfo(request, context)
        config = json.loads((self.checkpoint / "config.json").read_text())
        ends = config["eos_token_id"]
        info.vocab_size = config["vocab_size"]
        info.eos_token_ids[:] = ends if isinstance(ends, list) else [ends]
        return info


def _engine(checkpoint: Path | None, **fields: Any) -> TalkingEngine:
    if checkpoint is None:
        return TalkingEngine(**fields)
    engine = _Disguised(**fields, files=read_tokenizer_files(checkpoint))
    engine.checkpoint = checkpoint
    return engine


def _script(pause_s: float, text: str) -> Script:
    steps: list[Step] = [Pause(pause_s), Say(text, at_once=True)]
    return lambda prompt: steps


async def _serve(arguments: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    engine = _engine(
        arguments.tokenizer,
        script=_script(arguments.pause_s, arguments.text),
        max_context_tokens=arguments.max_context_tokens,
        address=f"127.0.0.1:{arguments.port}",
    )
    async with engine:
        print(f"serving on {engine.target}", flush=True)  # noqa: T201 - read by whoever started this
        await stopping.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="An engine that says the same to everybody.")
    parser.add_argument("--port", type=int, default=0, help="for gRPC; 0 takes a free one")
    parser.add_argument("--pause-s", type=float, default=0.0, help="before it says something")
    parser.add_argument("--text", default="Hello!", help="what it says")
    parser.add_argument("--tokenizer", type=Path, help="a checkpoint; one token per byte unless given")
    parser.add_argument("--max-context-tokens", type=int, default=8192)
    asyncio.run(_serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
