"""`rhizome demo`: two engines, a proxy, a gateway, and one question through the official client."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rhizome_launcher.plan import StackError, StackSettings
from rhizome_launcher.serve import EXIT_INTERRUPTED, StoppedEarlyError, interrupts, stay, unless_interrupted
from rhizome_launcher.stack import Stack

if TYPE_CHECKING:
    from openai import AsyncOpenAI

BUNDLED_MODEL = Path("models/demo")
ENGINES = 2
READY_TIMEOUT_S = 120.0


async def run_demo(model: Path, port: int, question: str, *, stay_up: bool) -> int:
    """Show the whole way of one request; return the exit code.

    Raises:
        StackError: the stack could not start, or the openai package is missing.
    """
    _check_bundled_model(model)
    console = Console()
    settings = StackSettings(
        model=model,
        engines=ENGINES,
        port=port,
        strict_port=False,
        engine_arguments=("--served-model-name", "rhizome-demo"),
        ready_timeout_s=READY_TIMEOUT_S,
    )
    started = time.monotonic()
    name = escape(str(model))
    console.print(f"starting {ENGINES} engines, a proxy and a gateway on {name} …", highlight=False)
    async with interrupts() as interrupted:
        stack = Stack(settings)
        try:
            await unless_interrupted(stack.start(), interrupted)
            console.print(f"ready after {time.monotonic() - started:.1f} s\n", highlight=False)
            await unless_interrupted(_ask(stack.url, question, console), interrupted)
            console.print(
                f"\n[green]gateway[/green]  {stack.url}/v1   page {stack.url}/   docs {stack.url}/docs"
            )
            console.print(f"logs     {settings.log_dir}/", highlight=False)
            if not stay_up:
                return 0
            console.print("Ctrl-C stops everything.")
            return await stay(stack, interrupted, console)
        except StoppedEarlyError:
            return EXIT_INTERRUPTED
        finally:
            await stack.stop()


def _check_bundled_model(model: Path) -> None:
    if model == BUNDLED_MODEL and not model.exists():
        raise StackError(
            f"there is no {model} in this directory; the bundled model is part of Rhizome's repository. "
            "Run this from the repository's root, or give --model a checkpoint."
        )


async def _ask(url: str, question: str, console: Console) -> None:
    """Stream one answer, then print what the response says about itself."""
    try:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError
    except ImportError:
        raise StackError("the openai package is missing; pip install openai") from None

    direct = DefaultAsyncHttpxClient(trust_env=False)  # a proxy of the environment cannot reach this host
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="not-needed", http_client=direct) as client:
        try:
            await _show_answer(client, question, console)
        except OpenAIError as error:
            raise StackError(f"the gateway did not answer the question: {error}") from error


async def _show_answer(client: AsyncOpenAI, question: str, console: Console) -> None:
    model = (await client.models.list()).data[0].id
    console.print(f"[bold]you[/bold]      {escape(question)}", highlight=False)
    console.print(f"[bold]{escape(model)}[/bold]  ", end="")
    raw = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage: Any = None
    performance: dict[str, float] = {}
    async for chunk in raw.parse():
        for choice in chunk.choices:
            console.print(choice.delta.content or "", end="", markup=False, highlight=False)
        usage = chunk.usage or usage
        performance = (chunk.model_extra or {}).get("performance") or performance
    console.print("\n")
    _print_figures(console, usage, performance, raw.headers.get("x-trace-id", ""))


def _print_figures(console: Console, usage: Any, performance: dict[str, float], trace_id: str) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    if usage is not None:
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        table.add_row(
            "usage",
            f"{usage.prompt_tokens} prompt ({cached} cached) + {usage.completion_tokens} output tokens",
        )
    if performance:
        table.add_row("timings", "  ".join(f"{name} {value:.1f}" for name, value in performance.items()))
    table.add_row("trace id", trace_id)
    console.print(table, highlight=False)
