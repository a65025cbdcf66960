"""The rate at which this machine multiplies matrices: the limit that training is held against."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch

from thinwire.matmul import matmul_nt


def gemm_flop_per_second(size: int = 1024, repeats: int = 12) -> float:
    """The faster of both libraries, the median of some products."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = 0.0
    for product in (matmul_nt, lambda a, b: a @ b.t()):
        product(a, b)
        times = []
        for _ in range(repeats):
            began = perf_counter()
            product(a, b)
            times.append(perf_counter() - began)
        best = max(best, 2 * size**3 / median(times))
    return best
