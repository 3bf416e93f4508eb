"""What a model's authors recommend for sampling, from `generation_config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rhizome_engine.checkpoint.json_fields import JsonFields


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Settings for requests that do not say otherwise; None where the file is silent.

    Attributes:
        temperature: 0 where the file says `do_sample: false`.
        top_p: nucleus size.
        top_k: 0 for all tokens.
        min_p: smallest probability relative to the likeliest token.
        repetition_penalty: 1 for none.
        eos_token_ids: ids that end a sequence, empty where the file names none.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] = ()


def read_generation_defaults(path: Path) -> GenerationDefaults:
    """Read `generation_config.json`; an absent file gives no defaults.

    Raises:
        CheckpointError: the file is damaged or a value unusable.
    """
    if not path.exists():
        return GenerationDefaults()
    fields = JsonFields.read(path)

    def number(key: str, *, zero_allowed: bool = False) -> float | None:
        return fields.number(key, zero_allowed=zero_allowed) if key in fields else None

    return GenerationDefaults(
        temperature=number("temperature", zero_allowed=True) if fields.flag("do_sample", True) else 0.0,
        top_p=number("top_p"),
        top_k=fields.integer("top_k", minimum=0) if "top_k" in fields else None,
        min_p=number("min_p", zero_allowed=True),
        repetition_penalty=number("repetition_penalty"),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )
