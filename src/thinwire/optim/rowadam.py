"""Lazy Adam and AdamW on rows, with a bias correction for each row.

Dense Adam changes every row at every step, because its averages decay even without a gradient. Lazy
Adam changes a row only when it is touched, and then first applies the decay that the row missed:

    m_r = b1^age m_r + (1 - b1) g_r          age: updates since the row's last one (ages.py)
    v_r = b2^age v_r + (1 - b2) g_r^2

Bias correction. m_r is a sum over the row's own gradients, each with weight (1 - b1) b1^(its age).
Dense Adam divides by the sum of these weights, 1 - b1^t. For a row that is touched only at some
steps the sum of the weights is different; it obeys the same recursion with 1 in place of g:

    c1_r = b1^age c1_r + (1 - b1)            and c2_r with b2

m_r / c1_r is then a true weighted average of the row's gradients, however seldom it is touched.
(Dividing by 1 - b1^t would shrink the gradients of a rare row to about 1 - b1 of their size.
Dividing by 1 - b1^n, with n the touches of the row, would do so after its first touches.) For a row
that is touched at every step, c1_r = 1 - b1^t, and the update is that of `torch.optim.Adam`.

The state contains the corrected averages, so that correction needs no extra pass over the row: with
mean_r = m_r / c1_r, the recursion is mean_r += (1 - b1) / c1_r (g_r - mean_r).

Sources: Kingma, Ba, Adam (ICLR 2015); Loshchilov, Hutter, Decoupled Weight Decay Regularization
(ICLR 2019). The lazy forms are ours.

V rows of the parameter, D width, R rows touched.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thinwire.optim.ages import new_age_state, take_ages
from thinwire.optim.decay import mark_applied, new_decay_state, pending_decay
from thinwire.optim.rows import RowOptimizer, add, column, per_element, per_row, read, write


class RowAdam(RowOptimizer):
    """Lazy Adam; with `weight_decay`, lazy AdamW.

    Weight decay is decoupled and lazy: when a row is touched, it is multiplied by 1 - lr
    weight_decay for each step since the last time, at the rates that those steps had (decay.py).
    Rows that are not touched lag behind: call `flush()` before the parameters are read as a whole.
    State: two floats per element and three numbers per row; with `weight_decay` four.

    Args:
        params: parameters or groups of them, as PyTorch's optimisers take them.
        lr: learning rate.
        betas: decay rates of the averages of the gradient and of its square, 0 to below 1.
        eps: added to the root.
        weight_decay: decoupled weight decay; a step multiplies a row by 1 - lr weight_decay.

    Examples:
        A row that was not touched is decayed when it is next touched, or by `flush`.

        >>> import torch, thinwire
        >>> table = torch.nn.Parameter(torch.ones(3, 1))
        >>> optimizer = thinwire.RowAdam([table], lr=0.1, weight_decay=0.5)
        >>> for _ in range(2):
        ...     optimizer.update_rows(table, torch.tensor([0]), torch.tensor([[1.0]]))
        >>> table[2].item()
        1.0
        >>> optimizer.flush()
        >>> round(table[2].item(), 4)  # (1 - 0.1 * 0.5) ** 2
        0.9025
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return (
            new_age_state(parameter)
            | new_decay_state(parameter, group)
            | {
                "mean": per_element(parameter),
                "mean_weight": per_row(parameter),
                "mean_square": per_element(parameter),
                "mean_square_weight": per_row(parameter),
            }
        )

    def _update(
        self,
        parameter: Tensor,
        ids_R: Tensor | None,
        grad_R: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        beta1, beta2 = group["betas"]
        age_R = take_ages(state, ids_R)
        mean_R = _average(state, "mean", beta1, age_R, ids_R, grad_R)
        square_R = _average(state, "mean_square", beta2, age_R, ids_R, grad_R.square())
        change_R = square_R.sqrt().add_(group["eps"]).reciprocal_().mul_(mean_R).mul_(-group["lr"])

        factor_R = pending_decay(state, ids_R)
        if factor_R is None:
            add(parameter, ids_R, change_R)
            return
        rows_R = read(parameter, ids_R)
        # In fp32 even where the parameter is not: 1 - lr weight_decay rounds to 1 in bf16.
        change_R.addcmul_(rows_R.float(), column(factor_R, rows_R))
        write(parameter, ids_R, rows_R.copy_(change_R))
        mark_applied(state, ids_R)


def _average(
    state: dict[str, Tensor],
    name: str,
    beta: float,
    age_R: Tensor,
    ids_R: Tensor | None,
    new_R: Tensor,
) -> Tensor:
    """Update the weighted average `name` of each row with `new_R`; returns the average [R, D]."""
    weight_R = read(state[f"{name}_weight"], ids_R)
    weight_R.mul_(beta**age_R).add_(1 - beta)
    write(state[f"{name}_weight"], ids_R, weight_R)

    average_R = read(state[name], ids_R)
    average_R.lerp_(new_R, column((1 - beta) / weight_R, new_R))
    write(state[name], ids_R, average_R)
    return average_R
