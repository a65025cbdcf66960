"""The flags of a neural cache, which `eval` and `score` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinwire.errors import UserError

if TYPE_CHECKING:
    from thinwire.inference.neural_cache import NeuralCache


def neural_cache(size: int | None, theta: float | None, weight: float | None) -> NeuralCache | None:
    """What --cache, --cache-theta and --cache-lambda ask for; None: no cache.

    Raises:
        UserError: a value out of its range, or no size.
    """
    if size is None:
        if theta is not None or weight is not None:
            raise UserError(
                "--cache-theta and --cache-lambda need the size of the cache: add --cache"
            )
        return None

    from thinwire.inference.neural_cache import NeuralCache

    return NeuralCache(
        size=size,
        theta=NeuralCache.theta if theta is None else theta,
        weight=NeuralCache.weight if weight is None else weight,
    )
