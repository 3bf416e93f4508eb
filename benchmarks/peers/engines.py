"""The engines that are compared: whose interpreter runs which script on which model, and how it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Model:
    """A file or directory of the cache.

    Attributes:
        environment: the virtual environment whose programs make it.
        command: makes it; the first word is a program of the environment, `{checkpoint}` and `{output}` are
            filled in.
    """

    environment: str
    command: Sequence[str]


@dataclass(frozen=True)
class Engine:
    """One row of the table.

    Attributes:
        environment: a virtual environment, or "" for the interpreter that runs `compare.py`.
        script: beside this file.
        model: a key of `MODELS`, or "" for the checkpoint itself.
        options: the script's further arguments.
        ours: the row of ours with weights of the same size, which this one is divided into; "" for ours.
    """

    environment: str
    script: str
    model: str = ""
    options: Sequence[str] = field(default=())
    ours: str = ""


OPTIMUM = ("optimum-cli", "export", "openvino", "-m", "{checkpoint}", "--task", "text-generation-with-past")
GGUF = ("python", "export_gguf.py", "{checkpoint}", "{output}", "--type")
CT2_TYPE = ("--quantization", "int8")
MODELS = {
    "openvino-int8": Model("openvino", (*OPTIMUM, "--weight-format", "int8", "--sym", "{output}")),
    "openvino-int4": Model(
        "openvino", (*OPTIMUM, "--weight-format", "int4", "--sym", "--group-size", "64", "{output}")
    ),
    "openvino-fp16": Model("openvino", (*OPTIMUM, "--weight-format", "fp16", "{output}")),
    "q8_0.gguf": Model("llama_cpp", (*GGUF, "Q8_0")),
    "q4_0.gguf": Model("llama_cpp", (*GGUF, "Q4_0")),
    "f32.gguf": Model("llama_cpp", (*GGUF, "F32")),
    "ctranslate2-int8": Model(
        "transformers",
        ("ct2-transformers-converter", "--model", "{checkpoint}", "--output_dir", "{output}", *CT2_TYPE),
    ),
}

# All prompts of 32 streams fit one step, as they do in every peer's configuration.
RHIZOME = ("--step-tokens", "4096", "--options")


def _openvino(model: str, ours: str, properties: str) -> Engine:
    return Engine("openvino", "openvino_genai_peer.py", model, ("--properties", properties), ours)


ENGINES = {
    "rhizome": Engine("", "rhizome_peer.py", options=(*RHIZOME, "{}")),
    "rhizome-bfloat16": Engine("", "rhizome_peer.py", options=(*RHIZOME, '{"dtype": "bfloat16"}')),
    "rhizome-int8": Engine("", "rhizome_peer.py", options=(*RHIZOME, '{"quantization": "int8"}')),
    "rhizome-int4": Engine("", "rhizome_peer.py", options=(*RHIZOME, '{"quantization": "int4"}')),
    # Int8 activations in groups of 192 are its fastest for this model at many streams; float activations
    # ("weight-only") at one stream. Both are offered, so that it is compared at its best everywhere.
    "openvino-int8": _openvino("openvino-int8", "rhizome-int8", '{"DYNAMIC_QUANTIZATION_GROUP_SIZE": "192"}'),
    "openvino-int8-weight-only": _openvino(
        "openvino-int8", "rhizome-int8", '{"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}'
    ),
    "openvino-int4": _openvino("openvino-int4", "rhizome-int4", '{"DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"}'),
    # Left to itself it computes in bfloat16 where the CPU can.
    "openvino-fp16": _openvino("openvino-fp16", "rhizome-bfloat16", "{}"),
    "openvino-fp16-f32": _openvino("openvino-fp16", "rhizome", '{"INFERENCE_PRECISION_HINT": "f32"}'),
    "llama.cpp-q8_0": Engine(
        "llama_cpp", "llama_cpp_peer.py", "q8_0.gguf", ("--flash-attention",), "rhizome-int8"
    ),
    "llama.cpp-q4_0": Engine(
        "llama_cpp", "llama_cpp_peer.py", "q4_0.gguf", ("--flash-attention",), "rhizome-int4"
    ),
    "llama.cpp-f32": Engine("llama_cpp", "llama_cpp_peer.py", "f32.gguf", ("--flash-attention",), "rhizome"),
    "ctranslate2-int8": Engine("transformers", "ctranslate2_peer.py", "ctranslate2-int8", (), "rhizome-int8"),
    "transformers": Engine("transformers", "transformers_peer.py", options=("--static",), ours="rhizome"),
    "transformers-bfloat16": Engine(
        "transformers",
        "transformers_peer.py",
        options=("--dtype", "bfloat16", "--static"),
        ours="rhizome-bfloat16",
    ),
}
