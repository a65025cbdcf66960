"""The only source of randomness: (run seed, purpose, name, step) -> generator.

Nothing draws from a global generator. Whoever knows the four values can repeat a draw, in any
process and in any order, so no generator state is ever saved or sent.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str, name: str = "", step: int = 0) -> int:
    """A 63-bit number that depends on all four values, the same on every machine."""
    key = f"{seed}\0{purpose}\0{name}\0{step}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, purpose: str, name: str = "", step: int = 0) -> np.random.Generator:
    """A NumPy generator for these four values."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, name, step)))


def torch_generator(seed: int, purpose: str, name: str = "", step: int = 0) -> torch.Generator:
    """A torch CPU generator for these four values."""
    import torch  # here, because `prepare` and `--help` must start without torch

    return torch.Generator().manual_seed(derive(seed, purpose, name, step))
