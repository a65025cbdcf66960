"""What the shared flags of `eval`, `score` and `rescore` ask for: a cache, learning, n-grams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from thinwire.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from thinwire.inference.arpa import Interpolation
    from thinwire.inference.dynamic_evaluation import DynamicEvaluation
    from thinwire.inference.neural_cache import NeuralCache
    from thinwire.inference.trained_model import TrainedModel

FloatOrAuto = float | Literal["auto"]


@dataclass(frozen=True)
class AskedCache:
    """A neural cache as the flags describe it; "auto" values are tuned by `resolve`."""

    size: int
    theta: FloatOrAuto
    weight: FloatOrAuto

    @property
    def is_tuned(self) -> bool:
        """Whether a value has to be tuned on the validation split."""
        return "auto" in (self.theta, self.weight)

    def resolve(self, model: TrainedModel) -> NeuralCache:
        """The cache with all its values, tuned where they are "auto".

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
    """The cache that --cache, --cache-theta and --cache-lambda ask for; None: no cache.

    Raises:
        UserError: a value is out of its range, or the size is missing.
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
    """What --dynamic, --dynamic-rate and --dynamic-decay ask for; None: the model does not learn.

    Raises:
        UserError: a value is out of its range, or the number of tokens is missing.
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


def ngram(
    model: TrainedModel, arpa: Path, weight: float | None, context: Literal["text", "line"]
) -> Interpolation:
    """The n-gram model that --arpa names, with --arpa-weight or the weight that was found.

    A weight that was found is printed on standard error.

    Raises:
        UserError: the file cannot be read, or there is no text to find the weight on.
    """
    from thinwire.console import console
    from thinwire.inference.arpa import interpolation

    found = interpolation(model, arpa, weight, context)
    if weight is None:
        console.print(f"--arpa-weight {found.weight:.6g}")
    return found


def refuse_adapter(average: int | None, adapter: str | None) -> None:
    """Raises UserError: --average and --adapter are given together."""
    if average is not None and adapter is not None:
        raise UserError("--average is of the run's own steps: leave out --adapter")
