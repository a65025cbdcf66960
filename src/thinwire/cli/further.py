"""The flags of what is measured beside the plain figure, which `eval` and `score` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from thinwire.errors import UserError

if TYPE_CHECKING:
    from thinwire.inference.dynamic_evaluation import DynamicEvaluation
    from thinwire.inference.neural_cache import NeuralCache
    from thinwire.inference.trained_model import TrainedModel

FloatOrAuto = float | Literal["auto"]


@dataclass(frozen=True)
class AskedCache:
    """A neural cache, of which theta and the weight may have to be tuned first."""

    size: int
    theta: FloatOrAuto
    weight: FloatOrAuto

    @property
    def is_tuned(self) -> bool:
        """Whether a value is to be found on the validation split."""
        return "auto" in (self.theta, self.weight)

    def resolve(self, model: TrainedModel) -> NeuralCache:
        """The cache with all its values.

        Raises:
            UserError: there is no validation split to tune on.
        """
        from thinwire.inference.evaluate import tuned_cache
        from thinwire.inference.neural_cache import NeuralCache

        if isinstance(self.theta, float) and isinstance(self.weight, float):
            return NeuralCache(size=self.size, theta=self.theta, weight=self.weight)
        theta = self.theta if isinstance(self.theta, float) else None
        weight = self.weight if isinstance(self.weight, float) else None
        return tuned_cache(model, self.size, theta, weight)


def _number_or_auto(flag: str, given: str | None, default: float) -> FloatOrAuto:
    if given is None:
        return default
    if given == "auto":
        return "auto"
    try:
        return float(given)
    except ValueError:
        raise UserError(f"{flag} is {given!r}, and must be a number or auto") from None


def neural_cache(size: int | None, theta: str | None, weight: str | None) -> AskedCache | None:
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

    sharpness = _number_or_auto("--cache-theta", theta, NeuralCache.theta)
    part = _number_or_auto("--cache-lambda", weight, NeuralCache.weight)
    given = {"theta": sharpness, "weight": part}
    NeuralCache(size=size, **{k: v for k, v in given.items() if isinstance(v, float)})
    return AskedCache(size, sharpness, part)


def dynamic_evaluation(
    chunk_tokens: int | None, rate: float | None, decay: float | None
) -> DynamicEvaluation | None:
    """What --dynamic, --dynamic-rate and --dynamic-decay ask for; None: the model stays as it is.

    Raises:
        UserError: a value out of its range, or no number of tokens.
    """
    if chunk_tokens is None:
        if rate is not None or decay is not None:
            raise UserError(
                "--dynamic-rate and --dynamic-decay need the tokens of a step: add --dynamic"
            )
        return None

    from thinwire.inference.dynamic_evaluation import DynamicEvaluation

    return DynamicEvaluation(
        chunk_tokens=chunk_tokens,
        rate=DynamicEvaluation.rate if rate is None else rate,
        decay=DynamicEvaluation.decay if decay is None else decay,
    )
