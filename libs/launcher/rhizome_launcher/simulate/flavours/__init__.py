"""What each kind of server answers beside completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rhizome_launcher.simulate.flavours import llamacpp, ollama, openai, sglang, tgi, vllm
from rhizome_launcher.simulate.http.server import Flavour

FLAVOURS: Final[Mapping[str, Flavour]] = {
    "vllm": vllm.FLAVOUR,
    "sglang": sglang.FLAVOUR,
    "llamacpp": llamacpp.FLAVOUR,
    "tgi": tgi.FLAVOUR,
    "ollama": ollama.FLAVOUR,
    "openai": openai.FLAVOUR,
}
"""Kinds of servers that speak HTTP."""
