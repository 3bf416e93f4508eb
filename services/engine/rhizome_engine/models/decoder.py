"""The decoder-only transformer that all families are: what differs among them is in `ModelConfig`.

x = embedding
each layer:   x += attention(norm(x));  x += feed-forward(norm(x))       (or += norm(...) of it)
logits = head(norm(x))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rhizome_engine.attention.base import AttentionLayer, AttentionPlan
from rhizome_engine.checkpoint.model_config import LayerConfig, ModelConfig
from rhizome_engine.kernels.base import Kernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm, normalise
from rhizome_engine.layers.rotary import Rope
from rhizome_engine.models.experts import Experts
from rhizome_engine.models.family import TensorNames
from rhizome_engine.models.parameters import Parameters
from rhizome_engine.parallel.group import RankGroup
from rhizome_engine.parallel.shares import config_of_rank, cut_targets, shares_of_rank
from rhizome_engine.parallel.vocabulary import VocabularyShare
from rhizome_engine.weights.format import WeightFormat
from rhizome_engine.weights.targets import ModelTargets

FormatOf = Callable[[str, int], WeightFormat]
"""Module name and in_features → how its matrix is kept."""


class BlockEnd:
    """The last product of a block, whose result is added to the residual stream; over all ranks, of several.

    Args:
        new: knows the kernels and the ranks.
        linear: the product.
        post_norm: normalises its result; None where a family does not.
        multiplier: of what is added.
    """

    def __init__(self, new: Parameters, linear: Linear, post_norm: RMSNorm | None, multiplier: float) -> None:
        self.kernels = new.kernels
        self.group = new.group
        self.linear = linear
        self.post_norm = post_norm
        self.multiplier = multiplier

    def add_to(self, x: Tensor, inner: Tensor) -> None:
        """Add the product with `inner` to x [num_tokens, hidden_size]."""
        if self.group is None and self.post_norm is None:
            self.kernels.add_linear(x, inner, self.linear, self.multiplier)
            return
        output = self.kernels.linear(inner, self.linear)
        if self.group is not None:
            self.group.add_up(output)
        if self.post_norm is None:
            x.add_(output, alpha=self.multiplier)
        else:
            self.kernels.add_norm(x, output, self.post_norm, self.multiplier)


class Attention:
    """Self-attention of one layer."""

    def __init__(
        self, config: ModelConfig, names: TensorNames, index: int, new: Parameters, norm: RMSNorm
    ) -> None:
        layer, prefix = config.layers[index], names.layer.format(layer=index)
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        sizes = {1: [q_size + 2 * kv_size], 3: [q_size, kv_size, kv_size]}[len(names.qkv)]
        parts = {prefix + name: size for name, size in zip(names.qkv, sizes, strict=True)}
        self.kernels = new.kernels
        self.norm = norm
        self.qkv = new.linear(config.hidden_size, parts, bias=config.qkv_bias)
        self.output = new.linear(q_size, {prefix + names.output: config.hidden_size}, bias=config.output_bias)
        q_norm = new.norm(prefix + names.q_norm, config.head_dim) if config.qk_norm else None
        k_norm = new.norm(prefix + names.k_norm, config.head_dim) if config.qk_norm else None
        self.post_norm = None
        if config.post_norms:
            self.post_norm = new.norm(prefix + names.post_attention_norm, config.hidden_size)
        self.output_end = BlockEnd(new, self.output, self.post_norm, config.residual_multiplier)
        self.layer = AttentionLayer(
            index=index,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
            softcap=config.attention_softcap,
            window=layer.window,
            rope=layer.rope,
            q_norm=None if q_norm is None else q_norm.gain,
            k_norm=None if k_norm is None else k_norm.gain,
            norm_eps=config.rms_norm_eps,
        )

    def add_to(self, x: Tensor, plan: AttentionPlan) -> None:
        """Add what this layer's attention says to the residual stream [num_tokens, hidden_size]."""
        attended = plan.attend(self.layer, self.kernels.linear(x, self.qkv, self.norm))
        self.output_end.add_to(x, attended)


class FeedForward:
    """Gated feed-forward of one layer."""

    def __init__(
        self, config: ModelConfig, names: TensorNames, index: int, new: Parameters, norm: RMSNorm
    ) -> None:
        prefix, hidden, size = names.layer.format(layer=index), config.hidden_size, config.intermediate_size
        part_size = 2 * size // len(names.gate_up)
        parts = {prefix + name: part_size for name in names.gate_up}
        self.kernels = new.kernels
        self.norm = norm
        self.activation = config.activation
        self.gate_up = new.linear(hidden, parts, bias=config.mlp_bias)
        self.down = new.linear(size, {prefix + names.down: hidden}, bias=config.mlp_bias)
        self.post_norm = None
        if config.post_norms:
            self.post_norm = new.norm(prefix + names.post_mlp_norm, hidden)
        self.down_end = BlockEnd(new, self.down, self.post_norm, config.residual_multiplier)

    def add_to(self, x: Tensor) -> None:
        """Add what the feed-forward says to the residual stream [num_tokens, hidden_size]."""
        self.down_end.add_to(x, self.kernels.gated_linear(x, self.gate_up, self.activation, self.norm))


class Decoder:
    """The whole model.

    Args:
        config: its shape.
        names: of the checkpoint's tensors.
        kernels: compute.
        format_of: decides how each matrix is kept.
        group: the ranks that share the model, each with a part of every layer; None for a whole model.

    Attributes:
        layer_done: called after each layer, so that a long step shows that it goes on.
        ropes: the distinct rotary embeddings, for the attention back end.
        targets: what the checkpoint has to fill.
    """

    def __init__(
        self,
        config: ModelConfig,
        names: TensorNames,
        kernels: Kernels,
        format_of: FormatOf,
        group: RankGroup | None = None,
    ) -> None:
        whole = config
        if group is not None:
            config = config_of_rank(config, group.size)
        self.config = config
        self.kernels = kernels
        self.group = group
        self.vocabulary = None if group is None else VocabularyShare(config.vocab_size, group)
        self.layer_done: Callable[[], None] = _nothing
        new = Parameters(kernels, format_of, config, group)
        vocab_rows = config.vocab_size if self.vocabulary is None else self.vocabulary.rows
        self.embedding = new.linear(config.hidden_size, {names.embedding: vocab_rows})
        self.layers: list[tuple[Attention, FeedForward | Experts]] = []
        for index, layer in enumerate(config.layers):
            self.layers.append(self._layer(names, index, layer, new))
        self.norm = new.norm(names.final_norm, config.hidden_size)
        self.head = self.embedding
        if not config.tie_word_embeddings:
            self.head = new.linear(config.hidden_size, {names.head: vocab_rows})
        longest = config.max_position_embeddings
        self.ropes = [Rope(rope, config.head_dim, kernels.device, longest) for rope in config.ropes]
        self.targets: ModelTargets = new.targets
        if group is not None:
            shares = shares_of_rank(whole, names, group.rank, group.size)
            self.targets = cut_targets(new.targets, shares, group.rank)

    def _layer(
        self, names: TensorNames, index: int, layer: LayerConfig, new: Parameters
    ) -> tuple[Attention, FeedForward | Experts]:
        config, prefix = self.config, names.layer.format(layer=index)
        attention_norm = new.norm(prefix + names.attention_norm, config.hidden_size)
        attention = Attention(config, names, index, new, attention_norm)
        mlp_norm = new.norm(prefix + names.mlp_norm, config.hidden_size)
        if layer.experts:
            return attention, Experts(config, names, index, new, mlp_norm)
        return attention, FeedForward(config, names, index, new, mlp_norm)

    def hidden_states(self, token_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """Run all layers over a ragged batch; the final norm is left to `logits`, which sees fewer tokens.

        Args:
            token_ids: [num_tokens] int64.
            plan: this step's attention; it knows the positions and stores the new keys and values.

        Returns:
            [num_tokens, hidden_size], newly allocated
        """
        weight, multiplier = self.embedding.weight, self.config.embedding_multiplier
        if self.vocabulary is None:
            x = self.kernels.embed(weight, token_ids, multiplier)
        else:
            x = self.vocabulary.embed(self.kernels, weight, token_ids, multiplier)
        for attention, feed_forward in self.layers:
            attention.add_to(x, plan)
            feed_forward.add_to(x)
            self.layer_done()
        return x

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return what transformers calls `last_hidden_state`, [n, hidden_size] float32, newly allocated."""
        return normalise(hidden.float(), self.norm.gain, self.norm.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project [n, hidden_size] to float32 [n, vocab_size], valid until the next call."""
        logits = self.own_logits(hidden)
        return logits if self.vocabulary is None else self.vocabulary.whole(logits)

    def own_logits(self, hidden: Tensor) -> Tensor:
        """As `logits`, of the tokens of this rank only: [n, rows], -inf where a row is no token."""
        logits = self.kernels.linear(hidden, self.head, self.norm).to(torch.float32)
        if self.config.logits_multiplier != 1:
            logits *= self.config.logits_multiplier
        if self.config.logits_softcap:
            logits = self.config.logits_softcap * torch.tanh(logits / self.config.logits_softcap)
        return logits if self.vocabulary is None else self.vocabulary.forbid_padding(logits)


def _nothing() -> None:
    pass
