"""Checks that a model is finite before it is evaluated or saved."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from thinwire.errors import UserError


def check_finite(parameters: Mapping[str, Tensor], step: int) -> None:
    """Make sure that every number of a model is finite.

    Raises:
        UserError: one is not; names its parameter.
    """
    for name, tensor in parameters.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(
                f"{name} is not finite at step {step}, so it is neither evaluated nor saved"
            )
