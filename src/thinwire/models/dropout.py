"""Dropout masks that depend on the stream, and not on the worker that computes it.

A mask drops the same units at all tokens of a stream's window (Gal & Ghahramani 2016, arXiv
1512.05287). It is drawn from (seed, step, stream), so N workers with b streams each drop the same
units as one worker with N b streams.

B streams, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.seeds import torch_generator


class DropoutMasks:
    """The dropout masks of one step for streams `first_stream` to `first_stream + B - 1`."""

    def __init__(self, rate: float, seed: int, step: int, first_stream: int, B: int) -> None:
        self.rate = rate
        self._generators = [
            torch_generator(seed, "dropout", str(first_stream + b), step) for b in range(B)
        ]

    def drop(self, x_BTD: Tensor) -> Tensor:
        """Zero a share `rate` of the units of each stream and scale up the others."""
        if self.rate == 0.0:
            return x_BTD
        keep = 1.0 - self.rate
        mask_BD = torch.empty(len(self._generators), x_BTD.shape[2])
        for mask_D, generator in zip(mask_BD, self._generators, strict=True):
            mask_D.bernoulli_(keep, generator=generator)
        return x_BTD * (mask_BD / keep).to(x_BTD)[:, None, :]
