"""When each row was last touched: what lazy decay needs.

A decay that a dense optimiser applies at every step, a lazy one owes to an untouched row and pays
when the row is next touched: `decay ** age`, where the age is the number of this parameter's
updates since the row's last one, this one included. A row touched by every update has age 1.

V rows of the parameter, R rows touched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.optim.rows import per_row, read


def new_ages(parameter: Tensor) -> dict[str, Tensor]:
    """The entries of a parameter's state that tell ages; `step` is counted by `RowOptimizer`."""
    return {
        "step": torch.zeros((), dtype=torch.int64),  # on the CPU, where reading it costs nothing
        "last_step": per_row(parameter, 0, torch.int32),
    }


def take_ages(state: dict[str, Tensor], ids_R: Tensor | None) -> Tensor:
    """The age of each of the rows `ids_R` [R], float; their last update is now this one."""
    step = int(state["step"])
    last_step_V = state["last_step"]
    age_R = (step - read(last_step_V, ids_R)).float()
    if ids_R is None:
        last_step_V.fill_(step)
    else:
        last_step_V.index_fill_(0, ids_R, step)
    return age_R
