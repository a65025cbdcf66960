"""The settings of both optimisers, of clipping and of the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, get_args

from thinwire.errors import UserError

DenseKind = Literal["sgd", "adagrad", "adam", "adamw", "adaptahead"]
RowKind = Literal["sgd", "adagrad", "adagrad_full", "adam", "adamw", "adaptahead"]
ScheduleKind = Literal["constant", "cosine", "plateau"]

# Default learning rates by optimiser, for models that have all other settings at their defaults.
# The rates differ by orders of magnitude because the optimisers scale their steps differently. A
# Transformer's blocks need lower rates than an LSTM's: 200 k tokens of Shakespeare at width 256
# with adam gave perplexity 170 at 0.001, 166 at 0.002 and 164 at 0.004. The default is the middle
# one, because deeper models need lower rates.
LSTM_RATES: dict[str, float] = {
    "sgd": 0.5,
    "adagrad": 5e-3,
    "adam": 5e-3,
    "adamw": 5e-3,
    "adaptahead": 5e-4,
}
BLOCK_RATES: dict[str, dict[str, float]] = {
    "lstm": LSTM_RATES,
    "transformer": {
        "sgd": 0.1,
        "adagrad": 5e-3,
        "adam": 2e-3,
        "adamw": 2e-3,
        "adaptahead": 2e-4,
    },
    # 1.5 M tokens of Shakespeare's bytes: the best of 0.0025, 0.005 and 0.01.
    "causal_conv": {**LSTM_RATES, "adam": 1e-2, "adamw": 1e-2},
}
ROW_RATES: dict[str, float] = {
    "sgd": 4.0,
    "adagrad": 0.2,
    "adagrad_full": 0.2,
    "adam": 0.01,
    "adamw": 0.01,
    "adaptahead": 2e-3,
}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimisers: `kind` updates the dense blocks, `rows` the embedding and output rows."""

    kind: DenseKind = "adam"
    """Optimiser of the dense blocks. Every step changes all of them."""

    rows: RowKind = "adagrad"
    """Optimiser of embedding and output rows. adagrad keeps one number per row, adagrad_full one
    per element; adaptahead, adam and adamw keep two per element."""

    lr: float | None = None
    """Learning rate of the dense blocks. [default: by `model.kind` and `optim.kind`; 0.005 for an
    lstm with adam]"""

    row_lr: float | None = None
    """Learning rate of the rows. [default: by `optim.rows`; 0.2 for adagrad]"""

    weight_decay: float = 0.0
    """adamw: decoupled weight decay. Vectors (biases, gains) do not decay. `kind` or `rows` must be
    adamw."""

    beta1: float = 0.9
    """adam and adamw: decay of the average gradient."""

    beta2: float = 0.999
    """adam and adamw: decay of the average squared gradient."""

    momentum: float = 0.9
    """adaptahead: decay of the velocity."""

    rho: float = 0.9
    """adaptahead: decay of the average squared gradient."""

    initial_accumulator: float = 0.0
    """adagrad and adagrad_full: initial value of the sum of squared gradients. Above 0 it makes
    the first steps smaller."""

    clip: float = 1.0
    """Largest global norm of a step's gradient. 0: no clipping."""

    schedule: ScheduleKind = "cosine"
    """Schedule of both learning rates. constant: no change. cosine: the rates fall along a cosine
    over the budget. plateau: the rates are cut when the validation perplexity stops falling."""

    warmup_steps: int = 20
    """Number of steps at the start in which the rates rise linearly from near 0, with any schedule.
    In an asynchronous run, each worker takes this many steps during the rise."""

    final_lr_fraction: float = 0.05
    """cosine: the rates at the end, as a fraction of the initial rates. plateau: cuts do not lower
    the rates below this fraction."""

    plateau_factor: float = 0.5
    """plateau: factor by which a cut multiplies the rates."""

    plateau_patience: int = 1
    """plateau: number of evaluations without a new best before a cut."""

    def __post_init__(self) -> None:
        for name, kinds in (("kind", DenseKind), ("rows", RowKind), ("schedule", ScheduleKind)):
            if getattr(self, name) not in get_args(kinds):
                raise UserError(
                    f"optim.{name} is {getattr(self, name)}, which is none of "
                    f"{', '.join(get_args(kinds))}"
                )
        for name in ("lr", "row_lr"):
            if getattr(self, name) is not None:
                _require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("weight_decay", "initial_accumulator", "clip"):
            _require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("beta1", "beta2", "momentum", "rho"):
            _require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("warmup_steps", "plateau_patience"):
            _require(self, name, getattr(self, name) >= 0, "0 or more")
        _require(self, "final_lr_fraction", 0 <= self.final_lr_fraction <= 1, "from 0 to 1")
        _require(self, "plateau_factor", 0 < self.plateau_factor < 1, "between 0 and 1")
        if self.weight_decay > 0 and "adamw" not in (self.kind, self.rows):
            raise UserError(
                f"optim.weight_decay is {self.weight_decay:g}, but only adamw decays weights and "
                f"optim.kind is {self.kind}, optim.rows is {self.rows}: set one of them to adamw"
            )

    @property
    def rates(self) -> tuple[float, float]:
        """The rates of the dense blocks and of the rows. A rate that is not given is an LSTM's."""
        resolved = self.for_model("lstm")
        assert resolved.lr is not None and resolved.row_lr is not None
        return resolved.lr, resolved.row_lr

    def for_model(self, model_kind: str) -> OptimConfig:
        """The same settings, with the default rates of this kind of model where none is given."""
        lr = BLOCK_RATES.get(model_kind, LSTM_RATES)[self.kind] if self.lr is None else self.lr
        row_lr = ROW_RATES[self.rows] if self.row_lr is None else self.row_lr
        return replace(self, lr=lr, row_lr=row_lr)


def _require(config: OptimConfig, name: str, holds: bool, what: str) -> None:
    value = getattr(config, name)
    if not (holds and isfinite(value)):
        raise UserError(f"optim.{name} must be {what}, and it is {value:g}")
