"""What a person can put right, said without a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer
from rich.console import Console
from rich.markup import escape

P = ParamSpec("P")


class BenchError(Exception):
    """A benchmark that cannot run or show its result; the text says why and what to do."""


def explained(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command so that a `BenchError` ends it with one line and exit code 1."""

    @functools.wraps(command)
    def explaining(*args: P.args, **options: P.kwargs) -> None:
        try:
            command(*args, **options)
        except BenchError as error:
            text = f"[red]error:[/red] {escape(str(error))}"
            Console(stderr=True).print(text, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None

    return explaining
