"""Other layouts in which the tensors of a family are found, brought into the one that the model asks for.

A layout works on the headers of the files, so nothing is copied: a tensor gets another name, disappears, or
becomes several tensors at other places of the same file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from rhizome_engine.checkpoint.safetensors_file import TensorEntry

Entries = dict[str, TensorEntry]
StoredLayout = Callable[[Mapping[str, TensorEntry]], Entries]
"""What one file holds → the same under the names of `TensorNames`."""


BASE_MODEL = ("embed_tokens.", "layers.", "norm.")
"""Beginnings of names where a model was saved without its output layer, as embedding models are."""


def with_prefix(entries: Mapping[str, TensorEntry]) -> Entries:
    """Put `model.` before the names of a model that was saved without its output layer."""
    return {
        f"model.{name}" if name.startswith(BASE_MODEL) else name: entry for name, entry in entries.items()
    }


def text_part(entries: Mapping[str, TensorEntry]) -> Entries:
    """Take the language model out of a model that sees as well.

    Its names begin with `language_model.`, or in some releases of transformers with `model.language_model.`
    instead of `model.`; what belongs to the eyes is left out.
    """
    result: Entries = {}
    for name, entry in entries.items():
        inside = name.removeprefix("model.")
        if inside.startswith(("vision_tower.", "multi_modal_projector.")):
            continue
        if name.startswith("language_model."):
            result[name.removeprefix("language_model.")] = entry
        else:
            result[name.replace("model.language_model.", "model.", 1)] = entry
    return result


class SplitExperts:
    """Experts that are stored as two tensors of three dimensions, one after the other.

    `gate_up_proj` is [experts, 2 * intermediate_size, hidden_size], the gate's rows first; `down_proj` is
    [experts, hidden_size, intermediate_size]. transformers computes with these and saves them where it is
    told not to go back to the original format.

    Args:
        block: name of the mixture in a layer, as the model asks for it ("mlp", "block_sparse_moe").
        gate: names of the modules of an expert.
        up: see gate.
        down: see gate.
    """

    def __init__(self, block: str, gate: str, up: str, down: str) -> None:
        self.block = block
        self.modules = {"gate_up_proj": (gate, up), "down_proj": (down,)}

    def __call__(self, entries: Mapping[str, TensorEntry]) -> Entries:
        """See `StoredLayout`."""
        result: Entries = {}
        for name, entry in entries.items():
            layer, separator, module = name.rpartition(".mlp.experts.")
            if separator and module in self.modules and len(entry.shape) == 3:
                result.update(self._experts(f"{layer}.{self.block}.experts", entry, self.modules[module]))
            else:
                result[re.sub(r"\.mlp\.gate\.weight$", f".{self.block}.gate.weight", name)] = entry
        return result

    def _experts(self, prefix: str, entry: TensorEntry, modules: tuple[str, ...]) -> Entries:
        num_experts, rows, columns = entry.shape
        shape = (rows // len(modules), columns)
        num_bytes = entry.num_bytes // (num_experts * len(modules))
        parts = [f"{prefix}.{expert}.{module}.weight" for expert in range(num_experts) for module in modules]
        starts = (entry.start + index * num_bytes for index in range(len(parts)))
        return {
            part: replace(entry, shape=shape, start=start, end=start + num_bytes)
            for part, start in zip(parts, starts, strict=True)
        }
