"""Rotary settings, read from `config.json` in the spellings of transformers 4 and 5."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]

SPELLINGS = {"su": "longrope"}
"""Older names of kinds."""
EVERYWHERE = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
KEYS: dict[RopeKind, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset(
        {
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "finetuned",
        }
    ),
    "longrope": frozenset({"factor", "attention_factor", "short_factor", "long_factor"}),
}
"""Kind → what its section may hold beside `EVERYWHERE`; any other key would change the angles unseen."""
REMEMBERS_LENGTH = ("llama3", "yarn", "longrope")
"""Kinds that know how long contexts were before they were stretched."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn into angles.

    Attributes:
        theta: base of the frequencies.
        rotary_fraction: share of each head that is rotated, from its beginning.
        kind: which scaling; the fields below are read by the kinds that need them.
        factor: how many times the context was stretched (all but default and longrope).
        low_freq_factor: wavelengths above `original_max_position / this` are stretched fully (llama3).
        high_freq_factor: wavelengths below `original_max_position / this` are left alone (llama3).
        original_max_position: context length before stretching (dynamic, llama3, yarn, longrope).
        attention_factor: for cosines and sines (yarn, longrope).
        beta_fast: a pair that turns so often within the original context is left alone (yarn).
        beta_slow: a pair that turns no more often than this is stretched fully (yarn).
        truncate: round the limits that follow from these outwards to whole pairs (yarn).
        short_factors: one divisor per pair, for contexts up to the original length (longrope).
        long_factors: the same for longer ones.
    """

    theta: float = 10000.0
    rotary_fraction: float = 1.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def rotary_dim(self, head_dim: int) -> int:
        """How many elements of a head are rotated."""
        return int(head_dim * self.rotary_fraction)


def parse_rope(fields: JsonFields, max_position: int, head_dim: int) -> RopeConfig:
    """Read rotary settings: `rope_theta` + `rope_scaling`, or transformers 5's `rope_parameters`.

    Args:
        fields: `config.json`.
        max_position: `max_position_embeddings`.
        head_dim: of which some or all is rotated.

    Raises:
        CheckpointError: an unknown kind, an unknown key, or a value out of range.
    """
    scaling = fields.section("rope_scaling")
    # Where both are given, transformers lets the older key win.
    section = scaling if scaling is not None and scaling.values else fields.section("rope_parameters")
    return read_rope(section or JsonFields({}, fields.where), fields, max_position, head_dim)


def read_rope(section: JsonFields, fields: JsonFields, max_position: int, head_dim: int) -> RopeConfig:
    """Read one section of rotary settings.

    Args:
        section: the object that holds the kind and its parameters, possibly empty.
        fields: what surrounds it and may hold `rope_theta` and the like as well.
        max_position: `max_position_embeddings`.
        head_dim: of which some or all is rotated.

    Raises:
        CheckpointError: as for `parse_rope`.
    """
    holder = section if "partial_rotary_factor" in section else fields
    fraction = holder.number("partial_rotary_factor", 1.0)
    rotary_dim = int(head_dim * fraction)
    if fraction > 1 or rotary_dim % 2 or not rotary_dim:
        raise holder.bad("partial_rotary_factor", f"at most 1 and rotate an even part of head_dim {head_dim}")
    theta = section.number("rope_theta", fields.number("rope_theta", 10000.0))
    kind = _kind(section)
    rope = RopeConfig(theta, fraction, kind)
    if kind == "default":
        return rope
    if kind in REMEMBERS_LENGTH:
        # Phi-3 keeps it beside the section, and transformers prefers that place.
        where = fields if "original_max_position_embeddings" in fields else section
        original = where.integer("original_max_position_embeddings", max_position)
        rope = replace(rope, original_max_position=original)
    if kind == "linear":
        return replace(rope, factor=section.number("factor"))
    if kind == "dynamic":
        return replace(rope, factor=section.number("factor"), original_max_position=max_position)
    if kind == "llama3":
        return _llama3(section, rope)
    factor = section.number("factor", max_position / rope.original_max_position)
    if kind == "yarn":
        return _yarn(section, replace(rope, factor=factor))
    return _longrope(section, rope, factor, rotary_dim // 2)


def stretched_context(fields: JsonFields, rope: RopeConfig, max_position: int) -> int:
    """Return the longest context of a model whose `max_position_embeddings` may be that before stretching.

    "dynamic" changes nothing below that length, so it must be; Qwen's authors ask users to add a yarn section
    and leave the length as it is. Others state the length after stretching.
    """
    section = fields.section("rope_scaling") or fields.section("rope_parameters")
    if rope.kind == "dynamic":
        return int(max_position * rope.factor)
    if rope.kind == "yarn" and section is not None and "original_max_position_embeddings" in section:
        return max(max_position, int(rope.original_max_position * rope.factor))
    return max_position


def _kind(section: JsonFields) -> RopeKind:
    """Return the kind after checking that the section holds nothing which it does not know."""
    # "type" is the older spelling of the key.
    name = section.values.get("rope_type", section.values.get("type", "default"))
    name = SPELLINGS.get(name, name) if isinstance(name, str) else name
    if name == "yarn" and "short_factor" in section:
        name = "longrope"  # what Phi-3's first files meant
    if name not in get_args(RopeKind):
        known = ", ".join(get_args(RopeKind))
        raise CheckpointError(f"{section.where}: rope_type {name!r} is not supported; known: {known}")
    kind: RopeKind = name
    known_keys = EVERYWHERE | KEYS[kind]
    if kind in REMEMBERS_LENGTH:
        known_keys |= {"original_max_position_embeddings"}
    for key in sorted(section.values):
        if key not in known_keys:
            raise CheckpointError(
                f"{section.where}: {key} is not supported for rope_type {kind!r}; "
                f"known: {', '.join(sorted(known_keys))}"
            )
    return kind


def _llama3(section: JsonFields, rope: RopeConfig) -> RopeConfig:
    low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
    if low >= high:
        raise section.bad("low_freq_factor", f"below high_freq_factor {high:g}")
    return replace(rope, factor=section.number("factor"), low_freq_factor=low, high_freq_factor=high)


def _yarn(section: JsonFields, rope: RopeConfig) -> RopeConfig:
    def magnitude(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    attention_factor = magnitude(1.0)
    if "mscale" in section and "mscale_all_dim" in section:
        scale, scale_all = (section.number(key, zero_allowed=True) for key in ("mscale", "mscale_all_dim"))
        if scale and scale_all:
            attention_factor = magnitude(scale) / magnitude(scale_all)
    fast, slow = section.number("beta_fast", 32.0), section.number("beta_slow", 1.0)
    if slow >= fast:
        raise section.bad("beta_slow", f"below beta_fast {fast:g}")
    return replace(
        rope,
        attention_factor=section.number("attention_factor", attention_factor),
        beta_fast=fast,
        beta_slow=slow,
        truncate=section.flag("truncate", True),
    )


def _longrope(section: JsonFields, rope: RopeConfig, factor: float, num_pairs: int) -> RopeConfig:
    def divisors(key: str) -> tuple[float, ...]:
        values = section.values.get(key)
        if not isinstance(values, list) or len(values) != num_pairs:
            raise section.bad(key, f"a list of {num_pairs} numbers, one per rotated pair")
        if not all(isinstance(value, int | float) and value > 0 for value in values):
            raise section.bad(key, "a list of numbers greater than 0")
        return tuple(float(value) for value in values)

    attention_factor = 1.0
    if factor > 1:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(rope.original_max_position))
    return replace(
        rope,
        attention_factor=section.number("attention_factor", attention_factor),
        short_factors=divisors("short_factor"),
        long_factors=divisors("long_factor"),
    )
