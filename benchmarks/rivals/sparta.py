"""SPARTA: every device trains alone, and at every step a few weights are averaged.

The recipe is the one that exogym publishes (github.com/exo-explore/gym, `SPARTAStrategy`): after
each step of its own optimiser, all devices replace a random 0.5% of the weights by their mean. Here
a seed that all share says which, so that no mask travels, and they are drawn with replacement,
which is much cheaper than looking at every weight; one draw in 400 is a repetition.
"""

from __future__ import annotations

from math import ceil
from time import perf_counter

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.rivals.method import Method, Updater, ring_bytes
from thinwire.seeds import torch_generator

FRACTION = 0.005


class Sparta(Method):
    """A step apart, then the mean of a random part of each parameter.

    Args:
        model: starts from the same weights on every device.
        updater: of all weights, each device's own.
        seed: which weights are averaged; the same on every device.
    """

    same_weights = False

    def __init__(self, model: nn.Module, updater: Updater, seed: int) -> None:
        self.module, self._updater, self._seed = model, updater, seed
        self._steps = 0
        self.exchange_seconds = 0.0

    def step(self) -> None:
        """Step alone, then average a part."""
        self._updater.step()
        began = perf_counter()
        self._average()
        self._steps += 1
        self.exchange_seconds = (self.exchange_seconds or 0.0) + perf_counter() - began

    @torch.no_grad()
    def _average(self) -> None:
        generator = torch_generator(self._seed, "sparta", step=self._steps)
        flat = [p.view(-1) for p in self.module.parameters()]
        drawn = [
            torch.randint(len(p), (ceil(FRACTION * len(p)),), generator=generator) for p in flat
        ]
        values = torch.cat([p[ids] for p, ids in zip(flat, drawn, strict=True)])
        dist.all_reduce(values)
        values /= dist.get_world_size()
        self.bytes_sent += ring_bytes(values.nbytes)
        means = values.split([len(ids) for ids in drawn])
        for p, ids, mean in zip(flat, drawn, means, strict=True):
            p[ids] = mean
