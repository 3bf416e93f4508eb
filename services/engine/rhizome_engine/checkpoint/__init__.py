"""Reading a Hugging Face checkpoint directory."""

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.generation import GenerationDefaults
from rhizome_engine.checkpoint.loader import Checkpoint, load_checkpoint
from rhizome_engine.checkpoint.model_config import ModelConfig, RopeConfig

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "GenerationDefaults",
    "ModelConfig",
    "RopeConfig",
    "load_checkpoint",
]
