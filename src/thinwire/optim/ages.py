"""The age of each row, from which lazy optimisers compute the decay of their averages.

A dense optimiser decays its averages at every step. A lazy one decays those of a row only when the
row is touched, by `decay ** age`. The age is the number of updates of this parameter since the last
update of the row, including the current one. A row touched by every update has age 1.

V rows of the parameter, R rows touched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.optim.rows import per_row, read


def new_age_state(parameter: Tensor) -> dict[str, Tensor]:
    """The entries of a parameter's state for ages; `RowOptimizer` increments `step`."""
    return {
        "step": torch.zeros((), dtype=torch.int64),  # on the CPU, where reading it costs nothing
        "last_step": per_row(parameter, 0, torch.int32),
    }


def take_ages(state: dict[str, Tensor], ids_R: Tensor | None) -> Tensor:
    """The age of each of the rows `ids_R` [R], float; then their last update is the current one."""
    step = int(state["step"])
    last_step_V = state["last_step"]
    age_R = (step - read(last_step_V, ids_R)).float()
    if ids_R is None:
        last_step_V.fill_(step)
    else:
        last_step_V.index_fill_(0, ids_R, step)
    return age_R
