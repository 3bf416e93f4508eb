"""A mixture of experts: each token goes through the few feed-forwards that a router chooses for it."""

from __future__ import annotations

import torch
from torch import Tensor

from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.models.family import TensorNames
from rhizome_engine.models.parameters import Parameters


class Experts:
    """The mixture of one layer; the experts' outputs are added in the order of their numbers."""

    def __init__(
        self, config: ModelConfig, names: TensorNames, index: int, new: Parameters, norm: RMSNorm
    ) -> None:
        assert config.experts is not None, "the layer has experts"
        prefix, hidden, size = names.layer.format(layer=index), config.hidden_size, config.experts
        self.config = config.experts
        self.kernels = new.kernels
        self.group = new.group
        self.norm = norm
        self.activation = config.activation
        self.multiplier = config.residual_multiplier
        self.router = new.linear(hidden, {prefix + names.router: size.num_experts})
        self.experts: list[tuple[Linear, Linear]] = []
        for number in range(size.num_experts):
            expert = prefix + names.expert.format(expert=number)
            part_size = 2 * size.intermediate_size // len(names.expert_gate_up)
            gate_up = new.linear(hidden, {expert + name: part_size for name in names.expert_gate_up})
            down = new.linear(size.intermediate_size, {expert + names.expert_down: hidden})
            self.experts.append((gate_up, down))

    def add_to(self, x: Tensor) -> None:
        """Add what the chosen experts say to the residual stream [num_tokens, hidden_size]."""
        scores = self.kernels.linear(x, self.router, self.norm).float().softmax(dim=-1)
        shares, chosen = scores.topk(self.config.experts_per_token, dim=-1)
        if self.config.normalise:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        said = torch.zeros_like(x)
        for number in sorted(set(chosen.flatten().tolist())):
            tokens, place = (chosen == number).nonzero(as_tuple=True)
            gate_up, down = self.experts[number]
            inner = self.kernels.gated_linear(x[tokens], gate_up, self.activation, self.norm)
            output = self.kernels.linear(inner, down)
            said.index_add_(0, tokens, (output * shares[tokens, place, None]).to(x.dtype))
        if self.group is not None:  # each rank has a slice of every expert
            self.group.add_up(said)
        x.add_(said, alpha=self.multiplier)
