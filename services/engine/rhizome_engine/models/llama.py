"""Llama: grouped-query attention with rotary positions, SwiGLU, pre-normalisation.

Tensor names in the checkpoint are those of transformers' `LlamaForCausalLM`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rhizome_engine.attention.base import AttentionPlan
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.layers.fused_linear import FusedLinear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.layers.rotary import inverse_frequencies, rotary_table, rotate


class LlamaAttention:
    """Self-attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self.layer = layer
        self.head_dim = config.head_dim
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        bias = config.attention_bias
        parts = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        self.qkv = FusedLinear(config.hidden_size, parts, bias=bias, device=device, dtype=dtype)
        self.out = FusedLinear(q_size, {"o_proj": config.hidden_size}, bias=bias, device=device, dtype=dtype)

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention: AttentionPlan) -> Tensor:
        """Return [num_tokens, hidden_size]."""
        heads = self.qkv(x).view(len(x), -1, self.head_dim)
        num_rotated = self.num_heads + self.num_kv_heads
        rotated = rotate(heads[:, :num_rotated], *rotary)
        q, k, v = rotated[:, : self.num_heads], rotated[:, self.num_heads :], heads[:, num_rotated:]
        return self.out(attention.attend(self.layer, q, k, v).flatten(1))

    def weight_targets(self, prefix: str) -> dict[str, Tensor]:
        """Map checkpoint names to parameters."""
        return {**self.qkv.weight_targets(prefix), **self.out.weight_targets(prefix)}


class LlamaMLP:
    """SwiGLU feed-forward of one layer."""

    def __init__(self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        hidden, size, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        parts = {"gate_proj": size, "up_proj": size}
        self.gate_up = FusedLinear(hidden, parts, bias=bias, device=device, dtype=dtype)
        self.down = FusedLinear(size, {"down_proj": hidden}, bias=bias, device=device, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Return [num_tokens, hidden_size]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)

    def weight_targets(self, prefix: str) -> dict[str, Tensor]:
        """Map checkpoint names to parameters."""
        return {**self.gate_up.weight_targets(prefix), **self.down.weight_targets(prefix)}


class LlamaLayer:
    """One transformer layer."""

    def __init__(self, config: ModelConfig, layer: int, *, device: torch.device, dtype: torch.dtype) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        self.attention_norm = RMSNorm(size, eps, device=device, dtype=dtype)
        self.attention = LlamaAttention(config, layer, device=device, dtype=dtype)
        self.mlp_norm = RMSNorm(size, eps, device=device, dtype=dtype)
        self.mlp = LlamaMLP(config, device=device, dtype=dtype)

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention: AttentionPlan) -> Tensor:
        """Return [num_tokens, hidden_size]."""
        x = x + self.attention(self.attention_norm(x), rotary, attention)
        return x + self.mlp(self.mlp_norm(x))

    def weight_targets(self, prefix: str) -> dict[str, Tensor]:
        """Map checkpoint names to parameters."""
        return {
            f"{prefix}input_layernorm.weight": self.attention_norm.weight,
            **self.attention.weight_targets(f"{prefix}self_attn."),
            f"{prefix}post_attention_layernorm.weight": self.mlp_norm.weight,
            **self.mlp.weight_targets(f"{prefix}mlp."),
        }


class LlamaForCausalLM:
    """The whole model; see `registry.CausalLM` for the contract."""

    def __init__(self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        self.tied = config.tie_word_embeddings
        vocabulary = (config.vocab_size, config.hidden_size)
        self.embedding = torch.empty(vocabulary, device=device, dtype=dtype)
        self.layers = [
            LlamaLayer(config, layer, device=device, dtype=dtype) for layer in range(config.num_layers)
        ]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype)
        self.head = self.embedding if self.tied else torch.empty_like(self.embedding)
        self.frequencies = inverse_frequencies(config.rope, config.head_dim).to(device)

    def hidden_states(self, token_ids: Tensor, positions: Tensor, attention: AttentionPlan) -> Tensor:
        """Run all layers; the final norm is left to `logits`, which sees fewer tokens."""
        rotary = rotary_table(self.frequencies, positions)
        x = F.embedding(token_ids, self.embedding)
        for layer in self.layers:
            x = layer(x, rotary, attention)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 [n, vocab_size]."""
        return F.linear(self.norm(hidden), self.head).float()

    def weight_targets(self) -> dict[str, Tensor]:
        """Map checkpoint names to parameters."""
        targets: dict[str, Tensor] = {"model.embed_tokens.weight": self.embedding}
        for index, layer in enumerate(self.layers):
            targets.update(layer.weight_targets(f"model.layers.{index}."))
        targets["model.norm.weight"] = self.norm.weight
        if not self.tied:
            targets["lm_head.weight"] = self.head
        return targets
