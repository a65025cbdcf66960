"""Losses compute in fp32, whatever the types of what they are given.

A softmax over many words adds up many small probabilities, which bf16 and fp16 would lose. So
hidden states and output rows are taken to fp32, autocast is off meanwhile, and each gradient goes
back in the type of its input. fp64 stays fp64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in fp32 (in fp64 where one of them is); inside, autocast is off."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.to(dtype) for t in tensors)
