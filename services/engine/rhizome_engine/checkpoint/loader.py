"""A checkpoint directory as one object."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.generation import GenerationDefaults, read_generation_defaults
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import ModelConfig, parse_model_config
from rhizome_engine.checkpoint.weight_files import WeightFiles
from rhizome_engine.models.registry import ARCHITECTURES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint directory says; the weights are read when they are copied into a model.

    Attributes:
        path: the directory.
        config: shape of the model.
        generation: recommended sampling settings.
    """

    path: Path
    config: ModelConfig
    generation: GenerationDefaults

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence, from `generation_config.json` and `config.json` together.

        Chat checkpoints name the end of a turn in the former only.
        """
        return tuple(dict.fromkeys(self.generation.eos_token_ids + self.config.eos_token_ids))

    @torch.no_grad()
    def load_weights(self, targets: Mapping[str, Tensor]) -> None:
        """Fill a model from the safetensors.

        Args:
            targets: tensor name in the checkpoint → the (part of a) parameter it belongs in.

        Raises:
            CheckpointError: a tensor is missing, has another shape or is cut off; it is named.
        """
        files = WeightFiles(self.path)
        missing = [name for name in targets if name not in files]
        if missing:
            shown = ", ".join(f"{name} {list(targets[name].shape)}" for name in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise CheckpointError(f"{self.path}: the safetensors lack {len(missing)} tensors: {shown}{more}")
        for name, target in targets.items():
            files.copy_into(name, target)
        # Old checkpoints hold rotary tables, and tied ones may repeat the embedding as lm_head.
        harmless = ("inv_freq", "lm_head.weight")
        unused = [name for name in files if name not in targets and not name.endswith(harmless)]
        if unused:
            logger.warning("%s: %d tensors are not used, the first is %s", self.path, len(unused), unused[0])


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read `config.json` and `generation_config.json` of a Hugging Face checkpoint directory.

    Raises:
        CheckpointError: the directory is not a checkpoint that can be served; the text says why.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; give the directory that holds config.json")
    return Checkpoint(
        path=directory,
        config=parse_model_config(JsonFields.read(directory / "config.json"), tuple(ARCHITECTURES)),
        generation=read_generation_defaults(directory / "generation_config.json"),
    )
