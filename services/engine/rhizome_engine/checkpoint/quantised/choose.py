"""Which quantised format a checkpoint has, if any."""

from __future__ import annotations

from collections.abc import Callable

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.quantised.awq import Awq
from rhizome_engine.checkpoint.quantised.base import QuantisedFormat
from rhizome_engine.checkpoint.quantised.compressed_tensors import CompressedTensors
from rhizome_engine.checkpoint.quantised.gptq import Gptq
from rhizome_engine.checkpoint.weight_files import WeightFiles

FORMATS: dict[str, Callable[[JsonFields, WeightFiles], QuantisedFormat]] = {
    "compressed-tensors": CompressedTensors,
    "awq": Awq,
    "gptq": Gptq,
}
_KNOWN = (
    "compressed-tensors (int4 or int8 weights; int8 or e4m3 weights with activations rounded per token), "
    "awq (4 bits, gemm), gptq (4 or 8 bits)"
)


def quantised_format(config: JsonFields, files: WeightFiles) -> QuantisedFormat | None:
    """Return how a checkpoint holds matrices as integers, None where it does not.

    Args:
        config: `config.json`.
        files: the safetensors.

    Raises:
        CheckpointError: in a way that is not implemented; the message lists the known ones.
    """
    fields = config.section("quantization_config")
    if fields is None:
        return None
    method = fields.values.get("quant_method")
    if method not in FORMATS:
        raise CheckpointError(
            f"{fields.where}: quant_method {method!r} is not supported; known: {_KNOWN}. "
            "What it was made from can be quantised while it is loaded: --quantization int8, fp8 or int4"
        )
    return FORMATS[method](fields, files)
