"""Losses are computed in fp32, whatever the types of their inputs are.

A softmax over many words sums many small probabilities, which bf16 and fp16 would lose. So hidden
states and output rows are converted to fp32, autocast is turned off, and each gradient is converted
back to the type of its input. fp64 inputs stay fp64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in fp32, or in fp64 if one of them is fp64. In the block, autocast is off."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.to(dtype) for t in tensors)
