"""A checkpoint directory as one object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.generation import GenerationDefaults, read_generation_defaults
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.checkpoint.weights import CheckpointWeights
from rhizome_engine.models.registry import family_of, parse_model_config
from rhizome_engine.weights.targets import ModelTargets


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

    def open_weights(self) -> CheckpointWeights:
        """Map the safetensors.

        Raises:
            CheckpointError: one is absent or damaged, or matrices are quantised in an unknown way.
        """
        config = JsonFields.read(self.path / "config.json")
        return CheckpointWeights(self.path, config, family_of(self.config.architecture).layout)

    def load_weights(self, targets: ModelTargets) -> None:
        """Fill a model from the safetensors.

        Raises:
            CheckpointError: a tensor is missing, has another shape or is cut off; it is named.
        """
        self.open_weights().fill(targets)


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
        config=parse_model_config(JsonFields.read(directory / "config.json")),
        generation=read_generation_defaults(directory / "generation_config.json"),
    )
