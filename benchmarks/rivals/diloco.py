"""DiLoCo: every device trains alone for many steps, then all take one outer step together.

A round goes in three phases (Douillard et al. 2023, arXiv 2311.08105):

1. **Inner.** Each device makes H steps of its own optimiser, whose state stays with it.
2. **Average.** The outer gradient is the mean, over all devices, of how far each has come from the
   weights that all agreed on.
3. **Outer.** SGD with Nesterov momentum moves the agreed weights; every device goes on from there.

The outer rate and momentum are the paper's.
"""

from __future__ import annotations

from time import perf_counter

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD

from benchmarks.rivals.method import Method, Updater, ring_bytes

OUTER_LR, OUTER_MOMENTUM = 0.7, 0.9


class DiLoCo(Method):
    """Inner steps apart, outer steps together; everything travels in fp32.

    Args:
        model: starts from the same weights on every device.
        updater: the inner one.
        inner_steps: H.
    """

    same_weights = False

    def __init__(self, model: nn.Module, updater: Updater, inner_steps: int) -> None:
        self.module, self.round_steps, self._inner = model, inner_steps, updater
        self._agreed = [p.detach().clone() for p in model.parameters()]
        self._outer = SGD(self._agreed, lr=OUTER_LR, momentum=OUTER_MOMENTUM, nesterov=True)
        self._steps = 0
        self.exchange_seconds = 0.0

    def step(self) -> None:
        """An inner step; at the end of a round the outer one."""
        self._inner.step()
        self._steps += 1
        if self._steps % self.round_steps == 0:
            began = perf_counter()
            self._outer_step()
            self.exchange_seconds = (self.exchange_seconds or 0.0) + perf_counter() - began

    @torch.no_grad()
    def _outer_step(self) -> None:
        for agreed, local in zip(self._agreed, self.module.parameters(), strict=True):
            agreed.grad = agreed - local
            dist.all_reduce(agreed.grad)
            agreed.grad /= dist.get_world_size()
            self.bytes_sent += ring_bytes(agreed.grad.nbytes)
        self._outer.step()
        for agreed, local in zip(self._agreed, self.module.parameters(), strict=True):
            local.copy_(agreed)
