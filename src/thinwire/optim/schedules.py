"""Learning-rate schedules: one factor, by which every learning rate is multiplied.

Warm-up depends on the number of steps. The cosine depends on the fraction of the budget that is
spent, which may be given in seconds, tokens or epochs. The plateau depends on the validation
perplexity.
"""

from __future__ import annotations

from math import cos, inf, pi

from thinwire.errors import UserError
from thinwire.optim.config import OptimConfig


def warmup(step: int, warmup_steps: int) -> float:
    """The factor of warm-up: it rises linearly from 1/n at step 0 to 1 at step n - 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def cosine(progress: float, final: float) -> float:
    """Half a cosine: 1 at `progress` 0, and `final` at `progress` 1 and beyond.

    Source: Loshchilov, Hutter, SGDR (ICLR 2017), without restarts.
    """
    progress = min(max(progress, 0.0), 1.0)
    return final + (1 - final) * (1 + cos(pi * progress)) / 2


class Schedule:
    """The factor of the learning rates of a run.

    Args:
        config: settings.
        round_steps: number of steps of single workers that count as one step of warm-up.
    """

    def __init__(self, config: OptimConfig, round_steps: int = 1) -> None:
        self._config = config
        self._warmup_steps = config.warmup_steps * round_steps
        self._best_perplexity = inf
        self._num_worse = 0
        self._plateau_factor = 1.0

    def factor(self, step: int, progress: float) -> float:
        """The factor by which learning rates are multiplied.

        Args:
            step: the number of steps that are done.
            progress: the fraction of the budget that is spent, 0 to 1.
        """
        factor = warmup(step, self._warmup_steps)
        match self._config.schedule:
            case "constant":
                return factor
            case "cosine":
                return factor * cosine(progress, self._config.final_lr_fraction)
            case "plateau":
                return factor * self._plateau_factor

    def observe(self, perplexity: float) -> None:
        """Record a validation perplexity.

        After more than `plateau_patience` evaluations in a row without a new best, the plateau's
        factor is reduced and the count starts again. NaN never counts as a new best.
        """
        if perplexity < self._best_perplexity:
            self._best_perplexity, self._num_worse = perplexity, 0
            return
        self._num_worse += 1
        if self._num_worse > self._config.plateau_patience:
            cut = self._plateau_factor * self._config.plateau_factor
            self._plateau_factor = max(cut, self._config.final_lr_fraction)
            self._num_worse = 0

    def state_dict(self) -> dict[str, float | int | None]:
        """The state for `load_state_dict`. It can be written as JSON."""
        return {
            "best_perplexity": None if self._best_perplexity == inf else self._best_perplexity,
            "num_worse": self._num_worse,
            "plateau_factor": self._plateau_factor,
        }

    def load_state_dict(self, state: dict[str, float | int | None]) -> None:
        """Restore the result of `state_dict`."""
        if missing := self.state_dict().keys() - state.keys():
            raise UserError(f"The state of the schedule lacks {', '.join(sorted(missing))}.")
        best = state["best_perplexity"]
        self._best_perplexity = inf if best is None else float(best)
        self._num_worse = int(state["num_worse"] or 0)
        self._plateau_factor = float(state["plateau_factor"] or 0.0)
