"""`rhizome serve`: a stack on the user's own checkpoint, in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

from rich.console import Console
from rich.markup import escape

from rhizome_launcher.stack import Stack, StackError, StackSettings


async def run_until_interrupted(settings: StackSettings) -> int:
    """Start the stack and stay until Ctrl-C or SIGTERM; return the exit code.

    Raises:
        StackError: the stack could not start.
    """
    console = Console()

    def show(name: str, line: str) -> None:
        console.print(f"[dim]{name:>9} |[/dim] {escape(line)}", highlight=False, soft_wrap=True)

    async with interrupts() as interrupted:
        console.print(f"starting {settings.engines} engine(s) on {settings.model} …", highlight=False)
        stack = Stack(settings, on_line=show)
        entering = asyncio.create_task(stack.__aenter__())
        if await _first(entering, interrupted) == "interrupted":
            entering.cancel()
            with contextlib.suppress(asyncio.CancelledError, StackError):
                await entering
            return 130
        await entering
        try:
            console.print(f"[green]ready[/green]: {stack.url}/v1  (docs at {stack.url}/docs; Ctrl-C stops)")
            return await stay(stack, interrupted, console)
        finally:
            await stack.stop()


async def stay(stack: Stack, interrupted: asyncio.Event, console: Console) -> int:
    """Wait for Ctrl-C, or for a service that ends by itself; return the exit code."""
    ended = asyncio.create_task(stack.wait())
    if await _first(ended, interrupted) == "interrupted":
        ended.cancel()
        console.print("stopping …")
        return 0
    service = ended.result()
    console.print(
        f"[red]{service.name} ended with exit code {service.exit_code}[/red]; log in {service.log_path}:\n"
        f"{escape(service.log_tail())}",
        highlight=False,
    )
    return 1


@contextlib.asynccontextmanager
async def interrupts() -> AsyncIterator[asyncio.Event]:
    """Turn the first SIGINT or SIGTERM into an event; a second SIGINT interrupts at once."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def interrupt() -> None:
        if event.is_set():
            loop.remove_signal_handler(signal.SIGINT)
        event.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield event
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _first(task: asyncio.Task[object], interrupted: asyncio.Event) -> str:
    """Wait for the task or the interrupt; say which came first."""
    waiting = asyncio.create_task(interrupted.wait())
    try:
        done, _ = await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return "task" if task in done else "interrupted"
    finally:
        waiting.cancel()
