"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rhizome_launcher.bench.errors import BenchError

JsonOption = Annotated[
    str, typer.Option("--json", help="Write one JSON object to this file; - for the last line of stdout.")
]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="Draw the figures into this PNG.")]
ModelPathOption = Annotated[Path, typer.Option("--model", "-m", help="Checkpoint directory.")]
QuantizationOption = Annotated[
    str, typer.Option(help="Weights' format, such as int8, fp8 or int4; default: as in the checkpoint.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        help="Any setting of rhizome_engine.LLM or its scheduler as name=value, such as "
        "max_step_tokens=1024; may be repeated.",
    ),
]


def numbers(text: str, option: str) -> list[int]:
    """Read `1,8,32`.

    Raises:
        BenchError: a part is no positive integer.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise BenchError(f"{option} takes positive integers, such as 1,8,32, not {text!r}.")
    return [int(part) for part in parts]


def rates(text: str, option: str) -> list[float]:
    """Read `0.5,2`.

    Raises:
        BenchError: a part is no positive number.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < float("inf") for value in values):
        raise BenchError(f"{option} takes positive numbers, such as 0.5,2, not {text!r}.")
    return values
