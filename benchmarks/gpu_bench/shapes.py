"""The models that are measured: real shapes, random weights, written as checkpoints on the spot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from rhizome_testing.byte_tokenizer import write_byte_tokenizer
from rhizome_testing.checkpoints import LlamaShape, write_json

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES = {
    "1b": LlamaShape(  # Llama-3.2-1B
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=32768,
        rope_theta=500000.0,
        rope_scaling=LLAMA3_ROPE,
        tie_word_embeddings=True,
    ),
    "8b": LlamaShape(  # Llama-3.1-8B
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        rope_theta=500000.0,
        rope_scaling={**LLAMA3_ROPE, "factor": 8.0},
        tie_word_embeddings=False,
    ),
    "tiny": LlamaShape(  # for trying the script out
        vocab_size=320,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
    ),
}


@dataclass(frozen=True)
class Work:
    """Bytes and operations of a shape, from which floors follow.

    Attributes:
        shape: of the model.
        weight_bytes: that a step reads: every matrix once, the embedding only where it is the output layer.
        kv_element: bytes of an element of the KV pool.
    """

    shape: LlamaShape
    weight_bytes: int
    kv_element: int = 2

    @property
    def kv_bytes(self) -> int:
        """Of one token's keys and values."""
        return (
            2 * self.shape.num_hidden_layers * self.shape.num_key_value_heads * self._head * self.kv_element
        )

    @property
    def _head(self) -> int:
        return self.shape.head_dim or self.shape.hidden_size // self.shape.num_attention_heads

    def step_bytes(self, streams: int, context: float) -> float:
        """Read by a step that decodes one token for each stream."""
        return self.weight_bytes + streams * context * self.kv_bytes

    def step_flops(self, streams: int, context: float) -> float:
        """Operations of the same step."""
        return streams * (
            2 * (matmul_parameters(self.shape) + head_parameters(self.shape)) + self._attention(context)
        )

    def prefill_flops(self, tokens: int, start: int = 0) -> float:
        """Operations of a prompt's tokens `start` to `tokens`; the output layer is needed once."""
        new = tokens - start
        seen = (tokens * (tokens + 1) - start * (start + 1)) / 2 / max(new, 1)
        return new * (2 * matmul_parameters(self.shape) + self._attention(seen)) + 2 * head_parameters(
            self.shape
        )

    def _attention(self, context: float) -> float:
        """Operations of one token that sees `context` tokens: scores and their sums, two each."""
        return 4 * self.shape.num_hidden_layers * self.shape.num_attention_heads * self._head * context

    def floor_s(
        self, streams: int, input_tokens: int, output_tokens: int, bandwidth: float, rate: float
    ) -> float:
        """Least time for streams that start together, from the two ceilings.

        Args:
            streams: how many.
            input_tokens: of each prompt.
            output_tokens: of each answer.
            bandwidth: bytes per second.
            rate: operations per second.
        """
        prompt = streams * self.prefill_flops(input_tokens) / rate
        steps = (
            max(self.step_bytes(streams, context) / bandwidth, self.step_flops(streams, context) / rate)
            for context in range(input_tokens + 1, input_tokens + output_tokens)
        )
        return max(prompt, self.weight_bytes / bandwidth) + sum(steps)


def matmul_parameters(shape: LlamaShape) -> int:
    """Elements of the matrices of all layers."""
    head = shape.head_dim or shape.hidden_size // shape.num_attention_heads
    q, kv = shape.num_attention_heads * head, shape.num_key_value_heads * head
    layer = shape.hidden_size * (2 * q + 2 * kv) + 3 * shape.hidden_size * shape.intermediate_size
    return shape.num_hidden_layers * layer


def head_parameters(shape: LlamaShape) -> int:
    """Elements of the output layer."""
    return shape.vocab_size * shape.hidden_size


def write_random_checkpoint(directory: Path, shape: LlamaShape, device: torch.device) -> Path:
    """Write a checkpoint in bfloat16, drawn on the device: a billion numbers take a CPU half a minute."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    write_byte_tokenizer(directory, vocab_size=shape.vocab_size)
    write_json(directory / "config.json", {**shape.to_config(), "torch_dtype": "bfloat16"})
    write_json(directory / "generation_config.json", {"eos_token_id": shape.eos_token_id})
    generator = torch.Generator(device).manual_seed(0)
    shards: dict[str, str] = {}
    groups = [["embedding"], *([str(layer)] for layer in range(shape.num_hidden_layers)), ["end"]]
    per_file = 8
    for number in range(0, len(groups), per_file):
        names = [name for group in groups[number : number + per_file] for name in group]
        tensors = {}
        for name in names:
            tensors |= _tensors(name, shape, generator, device)
        filename = f"model-{number // per_file + 1:05d}.safetensors"
        save_file(tensors, directory / filename, metadata={"format": "pt"})
        shards |= dict.fromkeys(tensors, filename)
    index = {"metadata": {}, "weight_map": shards}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def _tensors(
    part: str, shape: LlamaShape, generator: torch.Generator, device: torch.device
) -> dict[str, torch.Tensor]:
    """Draw the embedding, one layer, or what comes after the layers."""
    hidden, inner = shape.hidden_size, shape.intermediate_size

    def matrix(rows: int, columns: int) -> torch.Tensor:
        drawn = torch.randn(rows, columns, generator=generator, device=device, dtype=torch.float32)
        return (drawn * columns**-0.5).to(torch.bfloat16).cpu()

    def gain() -> torch.Tensor:
        drawn = torch.randn(hidden, generator=generator, device=device, dtype=torch.float32)
        return (1 + 0.1 * drawn).to(torch.bfloat16).cpu()

    if part == "embedding":
        return {"model.embed_tokens.weight": matrix(shape.vocab_size, hidden)}
    if part == "end":
        head = {} if shape.tie_word_embeddings else {"lm_head.weight": matrix(shape.vocab_size, hidden)}
        return {"model.norm.weight": gain(), **head}
    head_dim = shape.head_dim or hidden // shape.num_attention_heads
    q, kv = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    prefix = f"model.layers.{part}."
    return {
        f"{prefix}input_layernorm.weight": gain(),
        f"{prefix}post_attention_layernorm.weight": gain(),
        f"{prefix}self_attn.q_proj.weight": matrix(q, hidden),
        f"{prefix}self_attn.k_proj.weight": matrix(kv, hidden),
        f"{prefix}self_attn.v_proj.weight": matrix(kv, hidden),
        f"{prefix}self_attn.o_proj.weight": matrix(hidden, q),
        f"{prefix}mlp.gate_proj.weight": matrix(inner, hidden),
        f"{prefix}mlp.up_proj.weight": matrix(inner, hidden),
        f"{prefix}mlp.down_proj.weight": matrix(hidden, inner),
    }
