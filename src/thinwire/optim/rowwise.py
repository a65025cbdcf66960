"""SGD and Adagrad on rows, whose updates do not depend on when a row was last touched.

A step touches only a few thousand of V embedding and output rows. Adagrad suits them, because the
rate of a row falls with the row's own gradients, and not with the number of steps.

Sources: Duchi, Hazan, Singer, Adaptive Subgradient Methods (JMLR 2011); one accumulator per row as
in FBGEMM's EXACT_ROWWISE_ADAGRAD.

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
    """w_r -= lr g_r. No state.

    Args:
        params: parameters or groups of them, as PyTorch's optimisers take them.
        lr: learning rate.

    Examples:
        Only touched rows are read and written.

        >>> import torch, thinwire
        >>> table = torch.nn.Embedding(5, 2, sparse=True)
        >>> before = table.weight.detach().clone()
        >>> optimizer = thinwire.RowSGD(table.parameters(), lr=0.5)
        >>> table(torch.tensor([1, 3])).sum().backward()
        >>> optimizer.step()
        >>> (table.weight.detach() != before).all(1).tolist()
        [False, True, False, True, False]
    """

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
    """Adagrad with one accumulator per row, so that its state is 1/D of the parameter.

    acc_r += mean_d(g_r^2);  w_r -= lr g_r / (sqrt(acc_r) + eps)

    Args:
        params: parameters or groups of them, as PyTorch's optimisers take them.
        lr: learning rate.
        initial_accumulator_value: the initial value of acc_r, a squared gradient.
        eps: added to the root.

    Examples:
        The first step of a row has root mean square lr, however large its gradient is.

        >>> import torch, thinwire
        >>> table = torch.nn.Parameter(torch.zeros(5, 2))
        >>> optimizer = thinwire.RowAdagrad([table], lr=0.1)
        >>> optimizer.update_rows(table, torch.tensor([1]), torch.tensor([[300.0, 300.0]]))
        >>> [round(x, 4) for x in table[1].tolist()], table[0].tolist()
        ([-0.1, -0.1], [0.0, 0.0])
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
    """Adagrad with one accumulator per element; on dense gradients, `torch.optim.Adagrad`.

    acc += g^2;  w -= lr g / (sqrt(acc) + eps)

    Args:
        params: parameters or groups of them, as PyTorch's optimisers take them.
        lr: learning rate.
        initial_accumulator_value: the initial value of acc, a squared gradient.
        eps: added to the root.

    Examples:
        >>> import torch, thinwire
        >>> table = torch.nn.Parameter(torch.zeros(5, 2))
        >>> optimizer = thinwire.FullAdagrad([table], lr=0.1)
        >>> optimizer.update_rows(table, torch.tensor([1]), torch.tensor([[300.0, 0.3]]))
        >>> [round(x, 4) for x in table[1].tolist()]
        [-0.1, -0.1]
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
