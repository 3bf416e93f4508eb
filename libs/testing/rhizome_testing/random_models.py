"""Random checkpoints of any family that transformers knows, saved as transformers saves them.

transformers is no dependency of this package: whoever hands in a model has it. Equal models and seeds give
equal weights.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhizome_testing.byte_tokenizer import write_byte_tokenizer


def randomise(model: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Draw a transformers model's weights anew, so that activations keep their size and logits are spread.

    Gains lie around their neutral value and biases are not 0, so that a loader that forgets one is noticed.

    Args:
        model: a `PreTrainedModel`, changed in place.
        seed: of the weights.
        dtype: to which they are rounded; they remain float32.

    Returns:
        the same model, ready for inference
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_draw(name, parameter, generator).to(dtype))
    return model.eval()


def _draw(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(like.shape, generator=generator)
    if like.dim() >= 2:
        return noise / math.sqrt(like.shape[-1])
    if name.endswith("bias"):
        return 0.1 * noise
    # Gains are initialised to 1, or to 0 where they are stored minus 1.
    neutral = float(like.detach().mean().round())
    return neutral + 0.1 * noise


def save_random_model(
    model: Any, directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    """Randomise a model, write it as a checkpoint and leave the model with the weights as they were stored.

    Args:
        model: a `PreTrainedModel`, changed in place.
        directory: where the files go, made if absent.
        seed: of the weights.
        dtype: in which the weights are stored.
        options: for `save_pretrained`.

    Returns:
        the directory
    """
    randomise(model, seed, dtype)
    # A copy is converted, because that rounds rotary frequencies as well.
    copy.deepcopy(model).to(dtype).save_pretrained(directory, **options)
    write_byte_tokenizer(directory, vocab_size=model.config.get_text_config().vocab_size)
    return directory
