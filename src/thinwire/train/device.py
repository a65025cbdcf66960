"""Where to compute."""

from __future__ import annotations

import torch

from thinwire.errors import UserError


def find_device(wanted: str) -> torch.device:
    """`cpu`, `cuda`, `mps`, or `auto`: CUDA where there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if wanted not in available:
        raise UserError(f"there is no device {wanted!r}; known are auto, {', '.join(available)}")
    if not available[wanted]:
        raise UserError(f"--device {wanted} was asked for, but PyTorch finds no such device here")
    return torch.device(wanted)
