"""Adaptation layers: small layers that are inserted into a trained model and trained alone.

Ter-Sarkisov, Schwenk, Barrault, Bougares 2014 (arXiv 1412.6650). Each layer starts as the identity,
so untrained layers do not change the model's output.

D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """A linear map of `width` numbers that starts as the identity: h -> W h + b."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_D: Tensor) -> Tensor:
        """Map the last dimension."""
        return F.linear(x_D, self.weight, self.bias)
