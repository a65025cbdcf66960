"""Decides when a run evaluates and saves.

Normally the clock decides. But under a budget of tokens or epochs, a run that is stopped and
resumed has to give the same numbers as one that was never stopped, so nothing that depends on the
clock may change them. In these cases, evaluations and saves are due at equal distances in tokens:

- evaluations, if the learning rates or the end of the run depend on them: with the plateau schedule
  and with `eval.patience`;
- evaluations and saves, if something is flushed before them that changes later steps: messages
  between periodic workers, delayed gradients (`exchange.delay`), and the weight decay that rows
  have not had yet, because decay that is applied in two parts is rounded twice.

Servers of asynchronous workers undo such a flush afterwards (`parameter_server/snapshot.py`).
"""

from __future__ import annotations

from thinwire.config import RunConfig
from thinwire.runs.clock import Budget, Every

COUNTED_TIMES = 20
"""The number of times per run, where tokens decide and no setting says how often."""


class Due:
    """Evaluations and saves: each is due once whenever a multiple of its interval has passed.

    Args:
        config: all settings.
        budget: the budget of the run.
        num_workers: number of workers that train it.
        train_tokens: number of tokens of an epoch.
        tokens: number of tokens trained on so far.
        seconds: seconds of training so far.
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
        """Whether it is due; true once for each interval."""
        return self._every.due(tokens if self._in_tokens else seconds)
