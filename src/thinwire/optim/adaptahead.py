"""AdaptAhead: RMSProp's scaling with Nesterov's look-ahead, for dense blocks and for rows.

    v = rho v + (1 - rho) g^2            the running mean square of the gradient
    u = lr g / (sqrt(v) + eps)           RMSProp's step
    m = mu m + u                         the velocity
    w -= mu m + u                        Nesterov: step to where the velocity is about to lead

This is AdaptAhead as we implement it; the idea is that of Hoseini, Shahbahrami, Bayat, A Hybrid
Optimization Algorithm for Learning Deep Models. There is no bias correction: the first step of an
element is lr / sqrt(1 - rho) (1 + mu) long.

On rows it is lazy. A row that is not touched does not change. When it is next touched, v and m
first decay by rho^age and mu^age (ages.py). The steps that the velocity alone would have taken
meanwhile are left out. A dense block is treated as a table whose rows are all touched.

V rows of the parameter, D width, R rows touched.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thinwire.optim.ages import new_age_state, take_ages
from thinwire.optim.rows import RowOptimizer, add, column, per_element, read, write


class AdaptAhead(RowOptimizer):
    """RMSProp scaling with a Nesterov look-ahead. State: two floats per element, one per row.

    Args:
        params: parameters or groups of them, as PyTorch's optimisers take them.
        lr: learning rate.
        momentum: mu, the decay of the velocity, 0 to below 1.
        rho: decay of the mean square, 0 to below 1.
        eps: added to the root of the mean square.

    Examples:
        For any model, with or without a vocabulary:

        >>> import torch, thinwire
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = thinwire.AdaptAhead(model.parameters(), lr=0.003)
        >>> inputs = torch.randn(256, 4)
        >>> targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
        >>> for _ in range(600):
        ...     loss = (model(inputs) - targets).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> loss.item() < 0.01
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        momentum: float = 0.9,
        rho: float = 0.9,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "rho": rho, "eps": eps})

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return new_age_state(parameter) | {
            "mean_square": per_element(parameter),
            "velocity": per_element(parameter),
        }

    def _update(
        self,
        parameter: Tensor,
        ids_R: Tensor | None,
        grad_R: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        momentum, rho = group["momentum"], group["rho"]
        age_R = take_ages(state, ids_R)

        square_R = read(state["mean_square"], ids_R)
        square_R.mul_(column(rho**age_R, grad_R)).addcmul_(grad_R, grad_R, value=1 - rho)
        write(state["mean_square"], ids_R, square_R)

        step_R = square_R.sqrt().add_(group["eps"]).reciprocal_().mul_(grad_R).mul_(group["lr"])
        velocity_R = read(state["velocity"], ids_R)
        velocity_R.mul_(column(momentum**age_R, grad_R)).add_(step_R)
        write(state["velocity"], ids_R, velocity_R)

        add(parameter, ids_R, step_R.add_(velocity_R, alpha=momentum).neg_())
