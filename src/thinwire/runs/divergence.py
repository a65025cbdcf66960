"""Notices a run whose loss has gone wrong beyond repair."""

from __future__ import annotations

from math import isfinite

from thinwire.optim.config import OptimConfig

# A smoothed loss this far above its lowest value will not come back; 2 nats are a factor of 7 in
# perplexity.
EXPLODED_NATS = 2.0
SMOOTHING_STEPS = 100


class LossWatch:
    """An exponential moving average of the loss, and the lowest value that it has had, in nats.

    Args:
        loss: the initial value of both: the loss of an untrained model.
    """

    def __init__(self, loss: float) -> None:
        self.smoothed = self.lowest = loss

    def observe(self, loss: float, step: int) -> str | None:
        """Take in the mean loss per token of a step; returns what is wrong, or None."""
        if not isfinite(loss):
            return f"the loss is {loss} at step {step}"
        self.smoothed += (loss - self.smoothed) / SMOOTHING_STEPS
        self.lowest = min(self.lowest, self.smoothed)
        if self.smoothed > self.lowest + EXPLODED_NATS:
            return (
                f"the loss has risen from {self.lowest:.2f} to {self.smoothed:.2f} nats a token by "
                f"step {step}"
            )
        return None


def diverged_sentence(what: str, newest: int | None, best: int | None, optim: OptimConfig) -> str:
    """The sentence for the user: what is wrong, what was saved, and which settings to try.

    Args:
        what: what is wrong with the loss.
        newest: the newest step that was saved, if there is one.
        best: the best step that was saved, if there is one.
        optim: the settings of the optimisers.
    """
    kept = "no step had been saved yet"
    if newest is not None:
        kept = f"the newest state saved is step {newest}"
        kept += f", the best step {best}" if best not in (None, newest) else ""
    lr, row_lr = optim.rates
    return (
        f"{what}, so training has stopped; {kept}. Try a lower --optim.lr (now {lr:g}) or "
        f"--optim.row_lr (now {row_lr:g}), more --optim.warmup_steps (now {optim.warmup_steps}) or "
        f"a tighter --optim.clip (now {optim.clip:g})"
    )
