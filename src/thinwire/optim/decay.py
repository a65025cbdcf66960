"""Weight decay that untouched rows owe, and when they pay it.

Decoupled weight decay multiplies a parameter by 1 - lr_t wd at step t. Lazily, a row that a step
does not touch owes that factor. The rate differs from step to step, so what a row owes follows from
a sum over the steps that it missed, and not from their number:

    D += ln(1 - lr_t wd)                  one running sum per parameter, at every update of it
    w_r *= exp(D - P_r), then P_r = D     P_r: the running sum when row r last paid

A row pays when it is touched. All rows pay before the parameter is read as a whole
(`RowOptimizer.flush`).

Source of the decay: Loshchilov, Hutter, Decoupled Weight Decay Regularization (ICLR 2019).

V rows of the parameter, R rows touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log1p
from typing import Any

import torch
from torch import Tensor

SUM, PAID = "decay_sum", "decay_paid"


def new_decay(parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries of a parameter's state that tell what its rows owe; none if nothing decays."""
    if group["weight_decay"] == 0:
        return {}
    return {
        SUM: torch.zeros((), dtype=torch.float64),  # on the CPU, where reading it costs nothing
        PAID: torch.zeros(parameter.shape[:1], dtype=torch.float32, device=parameter.device),
    }


def count_decay(state: Mapping[str, Tensor], group: Mapping[str, Any]) -> None:
    """Every row owes the decay of one more update, at the present rate.

    Raises:
        ValueError: the group decays and its state has no account of that, or lr x weight_decay
            would leave nothing of a row.
    """
    if group.get("weight_decay", 0) == 0:
        return
    if SUM not in state:
        raise ValueError(
            "weight_decay was 0 when these parameters were added and is now "
            f"{group['weight_decay']:g}: give it to the constructor"
        )
    part = float(group["lr"]) * group["weight_decay"]
    if not part < 1:
        raise ValueError(f"lr x weight_decay is {part:g}, and must be below 1")
    state[SUM] += log1p(-part)


def owed_decay(state: Mapping[str, Tensor], ids_R: Tensor | None) -> Tensor | None:
    """What the rows have to be multiplied by, fp32 `[R]`; None if nothing decays."""
    if SUM not in state:
        return None
    paid_V = state[PAID]
    paid_R = paid_V if ids_R is None else paid_V.index_select(0, ids_R)
    return (state[SUM].to(paid_R.device) - paid_R).exp().float()


def mark_paid(state: Mapping[str, Tensor], ids_R: Tensor | None) -> None:
    """These rows owe nothing now."""
    if SUM not in state:
        return
    if ids_R is None:
        state[PAID].fill_(float(state[SUM]))
    else:
        state[PAID].index_fill_(0, ids_R, float(state[SUM]))


def mark_paid_until(state: Mapping[str, Tensor], ids_R: Tensor, running_sum: float) -> None:
    """These rows owe nothing of what the running sum counted until it stood at this value.

    Rows that have paid later ones keep that.
    """
    if SUM in state:
        paid_R = state[PAID].index_select(0, ids_R).clamp_(max=running_sum)
        state[PAID].index_copy_(0, ids_R, paid_R)
