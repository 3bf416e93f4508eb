"""The demo model's network: a plain Llama in about a page, with Hugging Face's tensor names.

The parameter names are those of ``LlamaForCausalLM``, so a checkpoint of this module *is* the exported
checkpoint. Training calls :meth:`Llama.hidden` and projects only the positions that carry loss, which
saves most of the output layer's work.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of the network; the field names are those of ``config.json``."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    def to_hf(self) -> dict[str, Any]:
        """Return ``config.json`` as ``LlamaForCausalLM`` and the serving engines read it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "rope_scaling": None,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "initializer_range": 0.02,
            "pretraining_tp": 1,
            "tie_word_embeddings": True,
            "use_cache": True,
            "torch_dtype": "bfloat16",
        }


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rope_tables(config: NetworkConfig, length: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, each ``[length, head_dim]``, in the two-halves layout Hugging Face uses."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), config.rope_theta**-half)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to ``[heads, num_tokens, head_dim]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention, each row of the packed batch by itself."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> Tensor:
        """Map the packed ``[num_tokens, hidden_size]`` to the same shape."""
        q = self.q_proj(x).view(-1, self.heads, self.head_dim).transpose(0, 1)
        k = self.k_proj(x).view(-1, self.kv_heads, self.head_dim).transpose(0, 1)
        v = self.v_proj(x).view(-1, self.kv_heads, self.head_dim).transpose(0, 1)
        group = self.heads // self.kv_heads
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin).repeat_interleave(group, dim=0)
        v = v.repeat_interleave(group, dim=0)
        rows = zip(q.split(lengths, 1), k.split(lengths, 1), v.split(lengths, 1), strict=True)
        out = [F.scaled_dot_product_attention(*(x[None] for x in row), is_causal=True)[0] for row in rows]
        return self.o_proj(torch.cat(out, dim=1).transpose(0, 1).flatten(1))


class MLP(nn.Module):
    """The gated feed-forward block (SwiGLU)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[num_tokens, hidden_size]`` to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> Tensor:
        """Map the packed ``[num_tokens, hidden_size]`` to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, lengths)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm: everything but the output projection."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """The causal language model; the output projection is the transposed embedding."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        cos, sin = rope_tables(config, config.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = (2 * config.num_hidden_layers) ** -0.5 if "o_proj" in name or "down" in name else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def hidden(self, tokens: Tensor, lengths: list[int]) -> Tensor:
        """Map packed rows ``[num_tokens]`` of the given lengths to states ``[num_tokens, hidden_size]``.

        Packing instead of padding: every layer but attention sees one matrix, and no token is wasted.
        """
        positions = torch.cat([torch.arange(length) for length in lengths])
        cos, sin = self.cos[positions], self.sin[positions]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin, lengths)
        return self.model.norm(x)

    def project(self, states: Tensor) -> Tensor:
        """Map states ``[..., hidden_size]`` to logits ``[..., vocab_size]``."""
        return F.linear(states, self.model.embed_tokens.weight)
