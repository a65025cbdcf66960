"""When a run evaluates and saves.

By the clock, as a rule. But under a budget of tokens or epochs nothing timed may steer the numbers,
so that a run which is stopped and resumed is the run that was never stopped. There, whatever would
steer them is due at equal distances in tokens:

- evaluations, where the rates or the end follow them: the plateau schedule and `eval.patience`;
- evaluations and saves, where something is brought in first, which changes what comes after: what
  is under way between periodic workers, and those with `exchange.delay`; and the weight decay that
  rows owe, for decay that is paid in two parts is rounded twice.

Servers of asynchronous workers undo what they bring in (`parameter_server/kept.py`).
"""

from __future__ import annotations

from thinwire.config import RunConfig
from thinwire.runs.clock import Budget, Every

COUNTED_TIMES = 20
"""How often in a run something is due that is counted in tokens, if no setting says how often."""


class Due:
    """Evaluations and saves: each is due once whenever a multiple of its interval has passed.

    Args:
        config: all settings.
        budget: of the run.
        num_workers: workers that train it.
        train_tokens: tokens of an epoch.
        tokens: trained on so far.
        seconds: of training so far.
    """

    def __init__(
        self,
        config: RunConfig,
        budget: Budget,
        num_workers: int,
        train_tokens: int,
        tokens: int,
        seconds: float,
    ) -> None:
        decays = config.optim.rows == "adamw" and config.optim.weight_decay > 0
        flushes = decays or config.exchange.flushes(num_workers)
        follows = config.optim.schedule == "plateau" or config.eval.patience > 0
        limits = budget.limits
        epochs_tokens = (limits["epochs"] or float("inf")) * train_tokens
        share = min(limits["tokens"] or float("inf"), epochs_tokens) / COUNTED_TIMES

        def every(each_seconds: float, each_tokens: float, steers: bool) -> _Counted:
            in_tokens = each_tokens > 0 or (steers and not budget.timed)
            interval = (each_tokens or share) if in_tokens else each_seconds
            return _Counted(interval, in_tokens, tokens, seconds)

        evaluations, saves = config.eval, config.checkpoint
        self.evaluation = every(
            evaluations.every_seconds, evaluations.every_tokens, flushes or follows
        )
        self.save = every(saves.every_seconds, saves.every_tokens, flushes)


class _Counted:
    """An interval in tokens or in seconds of training."""

    def __init__(self, interval: float, in_tokens: bool, tokens: int, seconds: float) -> None:
        self._in_tokens = in_tokens
        self._every = Every(interval, tokens if in_tokens else seconds)

    def due(self, tokens: int, seconds: float) -> bool:
        """Whether it is time; true once each time."""
        return self._every.due(tokens if self._in_tokens else seconds)
