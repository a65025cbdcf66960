"""Row optimisers that keep at most a running sum: SGD and Adagrad, row-wise and full.

Embedding and output rows are rare visitors: a step touches a few thousand of V. Adagrad fits them,
because a row's rate falls with what the row itself has seen, not with the step number. One float a
row is enough for that (row-wise Adagrad, as FBGEMM's EXACT_ROWWISE_ADAGRAD has it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thinwire.optim.rows import RowOptimizer, add, add_scaled, mean_square, read, write


class RowSGD(RowOptimizer):
    """w_r -= lr g_r. No state."""

    def __init__(self, params: ParamsT, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {}

    def _update(
        self,
        parameter: Tensor,
        ids_R: Tensor | None,
        grad_R: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        if ids_R is None:
            parameter.add_(grad_R, alpha=-group["lr"])
        else:
            add(parameter, ids_R, grad_R * -group["lr"])


class RowAdagrad(RowOptimizer):
    """Adagrad with one accumulator a row.

    acc_r += mean_d(g_r^2);  w_r -= lr g_r / (sqrt(acc_r) + eps)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        """`initial_accumulator_value`: what acc_r starts from, in units of a squared gradient."""
        self._initial = initial_accumulator_value
        super().__init__(params, {"lr": lr, "eps": eps})

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        sum_V = torch.full((len(parameter),), self._initial, device=parameter.device)
        return {"sum": sum_V}

    def _update(
        self,
        parameter: Tensor,
        ids_R: Tensor | None,
        grad_R: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        sum_R = read(state["sum"], ids_R)
        sum_R += mean_square(grad_R)
        write(state["sum"], ids_R, sum_R)
        scale_R = sum_R.sqrt().add_(group["eps"]).reciprocal_().mul_(-group["lr"])
        add_scaled(parameter, ids_R, grad_R, scale_R)
