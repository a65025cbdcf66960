"""SGD and Adagrad on rows: what a row's gradient does to it, without looking at the clock.

Embedding and output rows are rare visitors: a step touches a few thousand of V. Adagrad suits them,
because a row's rate falls with what the row itself has seen and not with the number of the step.

Sources: Duchi, Hazan, Singer, Adaptive Subgradient Methods (JMLR 2011); one accumulator a row as in
FBGEMM's EXACT_ROWWISE_ADAGRAD.

V rows of the parameter, D width, R rows touched.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thinwire.optim.rows import (
    RowOptimizer,
    add,
    add_scaled,
    mean_square,
    per_element,
    per_row,
    read,
    write,
)


class RowSGD(RowOptimizer):
    """w_r -= lr g_r. No state."""

    _piece_elements = None

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
        add(parameter, ids_R, grad_R * -group["lr"])


class RowAdagrad(RowOptimizer):
    """Adagrad with one accumulator a row, so that its state is 1/D of the parameter.

    acc_r += mean_d(g_r^2);  w_r -= lr g_r / (sqrt(acc_r) + eps)

    `initial_accumulator_value` is what acc_r starts from, a squared gradient.
    """

    _piece_elements = None

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "initial_accumulator_value": initial_accumulator_value, "eps": eps}
        )

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"sum": per_row(parameter, group["initial_accumulator_value"])}

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


class FullAdagrad(RowOptimizer):
    """Adagrad with one accumulator an element; on dense gradients, `torch.optim.Adagrad`.

    acc += g^2;  w -= lr g / (sqrt(acc) + eps)

    `initial_accumulator_value` is what acc starts from, a squared gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "initial_accumulator_value": initial_accumulator_value, "eps": eps}
        )

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"sum": per_element(parameter, group["initial_accumulator_value"])}

    def _update(
        self,
        parameter: Tensor,
        ids_R: Tensor | None,
        grad_R: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        sum_R = read(state["sum"], ids_R)
        sum_R.addcmul_(grad_R, grad_R)
        write(state["sum"], ids_R, sum_R)
        scale_R = sum_R.sqrt().add_(group["eps"])
        add(parameter, ids_R, grad_R.div(scale_R).mul_(-group["lr"]))
