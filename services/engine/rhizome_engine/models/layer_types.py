"""Which layers see everything and which only a window, in the ways that configs say so."""

from __future__ import annotations

from collections.abc import Sequence

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields

KNOWN = ("full_attention", "sliding_attention")


def layer_windows(
    fields: JsonFields, default_is_sliding: Sequence[bool], *, enabled: bool = True
) -> list[int]:
    """Return each layer's window, 0 for none.

    Args:
        fields: `config.json`.
        default_is_sliding: which layers have a window where `layer_types` is absent; one entry per layer.
        enabled: False where another key switches windows off.

    Raises:
        CheckpointError: `layer_types` has another length or an unknown type, or a window is asked for without
            its size.
    """
    types = fields.values.get("layer_types")
    if types is None:
        is_sliding = list(default_is_sliding)
    elif not isinstance(types, list) or len(types) != len(default_is_sliding):
        raise fields.bad("layer_types", f"a list of {len(default_is_sliding)} types, one per layer")
    else:
        for layer_type in types:
            if layer_type not in KNOWN:
                raise CheckpointError(
                    f"{fields.where}: layer_types holds {layer_type!r}, which is not supported; "
                    f"known: {', '.join(KNOWN)}"
                )
        is_sliding = [layer_type == "sliding_attention" for layer_type in types]
    if not enabled or not any(is_sliding):
        return [0] * len(is_sliding)
    window = fields.integer("sliding_window")
    return [window if sliding else 0 for sliding in is_sliding]


def same_windows(fields: JsonFields, *, enabled: bool = True) -> list[int]:
    """Return each layer's window for families in which all layers have the same one; null means none.

    transformers does not read `layer_types` for these, so a list that says otherwise would be ignored there.

    Raises:
        CheckpointError: `layer_types` contradicts.
    """
    num_layers = fields.integer("num_hidden_layers")
    has_window = enabled and "sliding_window" in fields
    windows = [fields.integer("sliding_window") if has_window else 0] * num_layers
    if layer_windows(fields, [has_window] * num_layers, enabled=enabled) != windows:
        expected = f"{KNOWN[has_window]} for all layers, as sliding_window says for this family,"
        raise fields.bad("layer_types", expected)
    return windows


def layer_numbers(fields: JsonFields, key: str) -> list[int]:
    """Return a list of integers, one per something that the key says; empty where it is absent.

    Raises:
        CheckpointError: something else stands there.
    """
    numbers = fields.values.get(key, [])
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise fields.bad(key, "a list of integers")
    return numbers
