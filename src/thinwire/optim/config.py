"""The settings of both optimisers, of clipping and of the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

from thinwire.errors import UserError

DenseKind = Literal["sgd", "adagrad", "adam", "adamw", "adaptahead"]
RowKind = Literal["sgd", "adagrad", "adagrad_full", "adam", "adamw", "adaptahead"]
ScheduleKind = Literal["constant", "cosine", "plateau"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters change: dense blocks by `kind`, embedding and output rows by `rows`."""

    kind: DenseKind = "adam"
    """Optimiser of the dense blocks, which every step changes as a whole."""

    rows: RowKind = "adagrad"
    """Optimiser of embedding and output rows. State: adagrad one number per row, adagrad_full one
    per element, adaptahead, adam and adamw two per element."""

    lr: float = 5e-3
    """Learning rate of the dense blocks. The default suits adam and adamw."""

    row_lr: float = 0.2
    """Learning rate of the rows. The default suits adagrad."""

    weight_decay: float = 0.0
    """adamw: decoupled weight decay. Vectors (biases, gains) do not decay. Either `kind` or `rows`
    must be adamw."""

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
    """Schedule of both learning rates. constant: no change. cosine: a cosine over the budget.
    plateau: the rates are cut when the validation perplexity stops falling."""

    warmup_steps: int = 20
    """Number of first steps in which the rates rise linearly from near 0, under any schedule. An
    asynchronous run counts the steps of each worker."""

    final_lr_fraction: float = 0.05
    """cosine: fraction of the rate at the end. plateau: smallest fraction that cuts lead to."""

    plateau_factor: float = 0.5
    """plateau: factor by which a cut multiplies the rates."""

    plateau_patience: int = 1
    """plateau: number of evaluations without a new best before a cut."""

    def __post_init__(self) -> None:
        for name, kinds in (("kind", DenseKind), ("rows", RowKind), ("schedule", ScheduleKind)):
            if getattr(self, name) not in get_args(kinds):
                raise UserError(
                    f"optim.{name} is {getattr(self, name)}, which is none of "
                    f"{', '.join(get_args(kinds))}."
                )
        for name in ("lr", "row_lr"):
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
                f"optim.kind is {self.kind}, optim.rows is {self.rows}: set one of them to adamw."
            )


def _require(config: OptimConfig, name: str, holds: bool, what: str) -> None:
    value = getattr(config, name)
    if not (holds and isfinite(value)):
        raise UserError(f"optim.{name} must be {what}, and it is {value:g}.")
