"""Clipping by the global norm, over dense blocks and touched rows together.

The gradient of a step is one long vector: every dense block, and every touched row once. A row that
was looked up several times has one gradient, the sum; rows that were not touched have none. So the
norm is that of the dense gradient, at the cost of what was touched.

Source: Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks (ICML
2013); the factor is that of `torch.nn.utils.clip_grad_norm_`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that `backward` left, sparse ones merged by row first (in `p.grad` itself)."""
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

    Those that need no scaling are not touched, for which a GPU's norm is waited for.

    Args:
        gradients: dense, or sparse and coalesced (`gradients_of`); a row named once.
        max_norm: the largest norm; 0: only measure.

    Returns:
        The norm before clipping, a 0-d tensor. Where it is not finite, there is a gradient that is
        not: do not apply any of them.

    Raises:
        ValueError: a sparse gradient is not coalesced, so its norm would be another.
    """
    values = [_values(gradient) for gradient in gradients]
    norm = get_total_norm(values)
    factor = max_norm / (norm + 1e-6)
    if max_norm > 0 and not factor >= 1.0:  # also where it is not a number
        for value in values:
            value.mul_(factor.to(value.device))
    return norm


def _values(gradient: Tensor) -> Tensor:
    if not gradient.is_sparse:
        return gradient
    if not gradient.is_coalesced():
        raise ValueError("A sparse gradient must be coalesced before its norm is taken.")
    return gradient.values()
