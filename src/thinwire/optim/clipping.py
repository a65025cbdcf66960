"""Clipping by the global norm, over dense blocks and touched rows together.

The norm is that of one vector of all gradients: every dense block, and every touched row once. The
gradient of a row that was looked up several times is the sum over the lookups. Untouched rows
have gradient 0, so the norm equals that of the dense gradient, but only touched rows are read.

Source: Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks (ICML
2013); the factor is that of `torch.nn.utils.clip_grad_norm_`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of all parameters that have one. Sparse ones are coalesced in `p.grad`."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad)
    return gradients


@torch.no_grad()
def clip_gradients(gradients: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale `gradients` in place so that their global norm is at most `max_norm`.

    If the norm is small enough, the gradients are not written to. To decide that, the call waits
    for a GPU to compute the norm.

    Args:
        gradients: dense tensors, or sparse ones that are coalesced (see `gradients_of`).
        max_norm: the largest norm; 0: only compute the norm.

    Returns:
        The norm before clipping, a 0-d tensor. If it is not finite, a gradient is not finite: do
        not apply any of them.

    Raises:
        ValueError: a sparse gradient is not coalesced, so its norm would be wrong.
    """
    values = [_values(gradient) for gradient in gradients]
    norm = get_total_norm(values)
    factor = max_norm / (norm + 1e-6)
    if max_norm > 0 and not factor >= 1.0:  # also if it is NaN
        for value in values:
            value.mul_(factor.to(value.device))
    return norm


def _values(gradient: Tensor) -> Tensor:
    if not gradient.is_sparse:
        return gradient
    if not gradient.is_coalesced():
        raise ValueError("A sparse gradient must be coalesced before its norm is taken.")
    return gradient.values()
