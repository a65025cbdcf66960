"""What a method is: how the steps of several devices become one model.

W devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adagrad, Adam, AdamW
from torch.optim.lr_scheduler import LinearLR

from thinwire.optim.config import OptimConfig

# As in thinwire's defaults.
LARGEST_NORM = OptimConfig().clip
WARMUP_STEPS = OptimConfig().warmup_steps


class Method(ABC):
    """The contract of methods.

    Attributes:
        module: computes the loss of a batch.
        round_steps: steps after which all devices have agreed on the weights.
        same_weights: whether all devices hold the same weights after every step.
        dense_steps: the first steps, which send more than all later ones do.
        bytes_sent: by this device so far; a ring all-reduce of n bytes counts 2 (W - 1) n / W.
        exchange_seconds: how long this device has waited for the others; None: the exchange runs
            beside the arithmetic, and nobody can tell.
    """

    module: nn.Module
    round_steps: int = 1
    same_weights: bool = True
    dense_steps: int = 0
    bytes_sent: float = 0.0
    exchange_seconds: float | None = None

    @abstractmethod
    def step(self) -> None:
        """Update the weights from the gradients that a backward pass has left."""


class Updater:
    """One of PyTorch's optimisers, in its fastest form: it touches every weight at every step.

    The gradient is clipped, and the rate rises over the first steps, as in thinwire's defaults;
    then it stays.

    Args:
        kind: adam, adamw or adagrad.
        parameters: of the model.
        lr: the learning rate.
    """

    def __init__(self, kind: str, parameters: Iterable[nn.Parameter], lr: float) -> None:
        self._parameters = list(parameters)
        kinds: dict[str, Any] = {"adam": Adam, "adamw": AdamW, "adagrad": Adagrad}
        self._optimizer = kinds[kind](self._parameters, lr=lr, fused=True)
        self._schedule = LinearLR(
            self._optimizer, start_factor=1 / WARMUP_STEPS, total_iters=WARMUP_STEPS - 1
        )

    def step(self) -> None:
        """Update the weights and forget the gradients."""
        clip_grad_norm_(self._parameters, LARGEST_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()


def ring_bytes(num_bytes: float) -> float:
    """What each device sends in a ring all-reduce of so many bytes."""
    W = dist.get_world_size()
    return 2 * (W - 1) / W * num_bytes
