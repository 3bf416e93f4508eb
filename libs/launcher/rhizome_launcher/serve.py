"""`rhizome serve`: a stack on the user's own checkpoint, in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import TypeVar

from rich.console import Console
from rich.markup import escape

from rhizome_launcher.plan import StackSettings
from rhizome_launcher.stack import Stack

EXIT_INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended before it was ready, as shells have it."""

T = TypeVar("T")


class StoppedEarlyError(Exception):
    """Ctrl-C or SIGTERM came while something was awaited."""


async def run_until_interrupted(settings: StackSettings) -> int:
    """Start the stack and stay until Ctrl-C or SIGTERM; return the exit code.

    Raises:
        StackError: the stack could not start.
    """
    console = Console()

    def show(name: str, line: str) -> None:
        console.print(f"[dim]{name:>9} |[/dim] {escape(line)}", highlight=False, soft_wrap=True)

    async with interrupts() as interrupted:
        model = escape(str(settings.model))
        console.print(f"starting {settings.engines} engine(s) on {model} …", highlight=False)
        stack = Stack(settings, on_line=show)
        try:
            await unless_interrupted(stack.start(), interrupted)
            where = f"{stack.url}/v1  (page at {stack.url}/, docs at {stack.url}/docs; Ctrl-C stops)"
            ready = f"[green]ready[/green]: {where}"
            console.print(ready, soft_wrap=True)
            return await stay(stack, interrupted, console)
        except StoppedEarlyError:
            return EXIT_INTERRUPTED
        finally:
            await stack.stop()


async def stay(stack: Stack, interrupted: asyncio.Event, console: Console) -> int:
    """Wait for Ctrl-C, or for a service that ends by itself; return the exit code."""
    try:
        service = await unless_interrupted(stack.wait(), interrupted)
    except StoppedEarlyError:
        console.print("stopping …")
        return 0
    console.print(
        f"[red]{service.name} ended with exit code {service.exit_code}[/red]; "
        f"log in {escape(str(service.log_path))}:\n{escape(service.log_tail())}",
        highlight=False,
    )
    return 1


async def unless_interrupted(work: Coroutine[object, object, T], interrupted: asyncio.Event) -> T:
    """Wait for `work`, and cancel it when the interrupt comes first.

    Raises:
        StoppedEarlyError: the interrupt came first; the work has ended.
    """
    task = asyncio.ensure_future(work)
    waiting = asyncio.create_task(interrupted.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise StoppedEarlyError
    finally:
        waiting.cancel()
        if not task.done():
            task.cancel()
            try:
                await asyncio.gather(task, return_exceptions=True)
            except asyncio.CancelledError:  # no patience: the work shall hurry, too
                task.cancel()
                raise


@contextlib.asynccontextmanager
async def interrupts() -> AsyncIterator[asyncio.Event]:
    """Turn the first SIGINT or SIGTERM into an event; any further one cancels the block."""
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None
    event = asyncio.Event()

    def interrupt() -> None:
        if event.is_set():
            main.cancel()
        event.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield event
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
