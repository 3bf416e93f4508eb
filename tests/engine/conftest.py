"""Where there is no GPU, Triton kernels are interpreted: they decide when they are first imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
