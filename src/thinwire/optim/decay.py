"""Lazy weight decay: the decay of untouched rows stays pending until they are next touched.

Decoupled weight decay multiplies a parameter by 1 - lr_t wd at step t. For a row that a step does
not touch, this factor is pending. The rate differs from step to step, so the pending factor depends
on a sum over the steps that the row has missed, and not only on their number:

    D += ln(1 - lr_t wd)                  one running sum per parameter, at every update of it
    w_r *= exp(D - P_r), then P_r = D     P_r: the running sum that is applied to row r

The pending decay of a row is applied when the row is touched. That of all rows is applied before
the parameter is read as a whole (`RowOptimizer.flush`).

Source of the decay: Loshchilov, Hutter, Decoupled Weight Decay Regularization (ICLR 2019).

V rows of the parameter, R rows touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log1p
from typing import Any

import torch
from torch import Tensor

SUM, APPLIED = "decay_sum", "decay_paid"


def new_decay_state(parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries of a parameter's state for weight decay; none if the group does not decay."""
    if group["weight_decay"] == 0:
        return {}
    return {
        SUM: torch.zeros((), dtype=torch.float64),  # on the CPU, where reading it costs nothing
        APPLIED: torch.zeros(parameter.shape[:1], dtype=torch.float32, device=parameter.device),
    }


def accumulate_decay(state: Mapping[str, Tensor], group: Mapping[str, Any]) -> None:
    """Add the decay of one update, at the current rate, to the running sum.

    Raises:
        ValueError: the group decays but the state has no entries for it, or lr x weight_decay is 1
            or more.
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


def pending_decay(state: Mapping[str, Tensor], ids_R: Tensor | None) -> Tensor | None:
    """The factors by which the rows must be multiplied, fp32 `[R]`; None: nothing decays."""
    if SUM not in state:
        return None
    applied_V = state[APPLIED]
    applied_R = applied_V if ids_R is None else applied_V.index_select(0, ids_R)
    return (state[SUM].to(applied_R.device) - applied_R).exp().float()


def mark_applied(state: Mapping[str, Tensor], ids_R: Tensor | None) -> None:
    """Record that no decay is pending for these rows."""
    if SUM not in state:
        return
    if ids_R is None:
        state[APPLIED].fill_(float(state[SUM]))
    else:
        state[APPLIED].index_fill_(0, ids_R, float(state[SUM]))


def mark_applied_until(state: Mapping[str, Tensor], ids_R: Tensor, running_sum: float) -> None:
    """Record that the decay up to this value of the running sum is applied to these rows.

    The record of a row to which later decay was applied already does not change.
    """
    if SUM in state:
        applied_R = state[APPLIED].index_select(0, ids_R).clamp_(max=running_sum)
        state[APPLIED].index_copy_(0, ids_R, applied_R)
