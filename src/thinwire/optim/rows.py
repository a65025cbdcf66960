"""The base class of row optimisers, and functions that read and write rows.

V rows of the parameter, D width, R rows touched. A table is [V, D], or [V] where a row is one
number; `ids_R` holds distinct row numbers, and None stands for all rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from thinwire.errors import UserError
from thinwire.optim.decay import accumulate_decay, mark_applied, pending_decay


class RowOptimizer(Optimizer, ABC):
    """An optimiser whose step reads and writes only the touched rows of a table.

    `step()` takes gradients from `p.grad`, sparse (`nn.Embedding(sparse=True)`) or dense;
    `update_rows()` takes gradients that are already merged by row. Other rows and their state do
    not change. The state is created in the constructor, on the parameter's device, in fp32.

    A subclass is final and defines only its constructor, `_new_state` and `_update`.
    """

    # An update with several intermediate results processes this many elements at a time, so that
    # they stay in the cache and the allocator reuses their memory: Adam on 2000 rows of 512 takes
    # 3 ms on one core in pieces, and 9 ms at once. None: at once, for updates with at most one
    # intermediate result.
    _piece_elements: ClassVar[int | None] = 1 << 17

    @abstractmethod
    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state that `parameter` starts with."""

    @abstractmethod
    def _update(
        self,
        parameter: Tensor,
        ids_R: Tensor | None,
        grad_R: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        """Update the rows `ids_R` of the parameter and its state; do not change `grad_R` (fp32)."""

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient, sparse or dense."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    ids_R, grad_R = merged(parameter.grad)
                    self._apply(parameter, ids_R, grad_R.float(), group)
        return loss

    @torch.no_grad()
    def update_rows(self, parameter: Tensor, ids_R: Tensor | None, grad_R: Tensor) -> None:
        """Update the rows `ids_R` of `parameter`, one of this optimiser's, in place.

        Args:
            parameter: [V, D] or [V].
            ids_R: distinct row numbers, int64; None for all rows in order.
            grad_R: the gradient of those rows, [R, D] or [R]. It is not changed.

        Raises:
            ValueError: the gradient has not the shape of those rows, or the parameter does not
                belong to this optimiser. It is not checked that the ids are distinct.
        """
        expected = parameter.shape if ids_R is None else (len(ids_R), *parameter.shape[1:])
        if grad_R.shape != expected:
            raise ValueError(f"The gradient is {list(grad_R.shape)}, its rows {list(expected)}.")
        self._apply(parameter, ids_R, grad_R.float(), self._group_of(parameter))

    @torch.no_grad()
    def rows(self, parameter: Tensor, ids_R: Tensor | None = None) -> Tensor:
        """The values of rows, `[R, D]` or `[R]`, with their pending weight decay applied.

        The parameter is not changed. If nothing decays and `ids_R` is None, the result shares the
        parameter's memory.
        """
        rows_R = parameter.detach() if ids_R is None else parameter.detach().index_select(0, ids_R)
        factor_R = pending_decay(self.state[parameter], ids_R)
        if factor_R is None:
            return rows_R
        return (rows_R * column(factor_R, rows_R)).to(rows_R.dtype)

    @torch.no_grad()
    def flush(self, parameter: Tensor | None = None, ids_R: Tensor | None = None) -> None:
        """Apply the pending weight decay of rows. Call it before parameters are read as a whole.

        A lazy optimiser changes a row only when the row is touched, so other rows lag behind by the
        decay of the steps that they missed. Call `flush` before evaluation, export and saving. Only
        `RowAdam` with a weight decay has pending decay.

        Args:
            parameter: a parameter of this optimiser; None: all of them.
            ids_R: distinct row numbers of that parameter, int64; None: all rows.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        for table in parameters if parameter is None else [parameter]:
            state = self.state[table]
            factor_R = pending_decay(state, ids_R)
            if factor_R is None:
                continue
            rows_R = read(table, ids_R)
            write(table, ids_R, rows_R.mul_(column(factor_R, rows_R)))
            mark_applied(state, ids_R)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters and create their state. Torch's constructor calls it too."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            self.state[parameter] = self._new_state(parameter, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of `state_dict()`; unlike in torch, every tensor keeps its type."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        present = [self.state[p] for p in parameters]
        super().load_state_dict(state_dict)
        for parameter, saved_id, like in zip(parameters, saved_ids, present, strict=True):
            saved = state_dict["state"].get(saved_id, {})
            if missing := like.keys() - saved.keys():
                raise UserError(
                    f"the saved state of a {type(self).__name__} lacks "
                    f"{', '.join(sorted(missing))}, which this one needs"
                )
            self.state[parameter] = {
                name: saved[name].to(tensor.device, copy=True) for name, tensor in like.items()
            }

    def _apply(
        self, parameter: Tensor, ids_R: Tensor | None, grad_R: Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        if "step" in state:
            state["step"] += 1  # ages.py reads it
        accumulate_decay(state, group)
        if self._piece_elements is None or grad_R.numel() <= self._piece_elements:
            self._update(parameter, ids_R, grad_R, state, group)
            return
        num_rows = max(1, self._piece_elements // grad_R.shape[1:].numel())
        for start in range(0, len(grad_R), num_rows):
            piece = slice(start, start + num_rows)
            if ids_R is None:
                part = {name: t[piece] if t.ndim > 0 else t for name, t in state.items()}
                self._update(parameter[piece], None, grad_R[piece], part, group)
            else:
                self._update(parameter, ids_R[piece], grad_R[piece], state, group)

    def _group_of(self, parameter: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(parameter is p for p in group["params"]):
                return group
        raise ValueError("update_rows was given a parameter that this optimiser does not hold.")


def merged(grad: Tensor) -> tuple[Tensor | None, Tensor]:
    """Split a gradient into distinct row numbers (None: all rows) and one gradient per row."""
    if grad.layout is not torch.sparse_coo:
        return None, grad
    grad = grad.coalesce()
    assert grad.sparse_dim() == 1, "a sparse gradient names rows, not single elements"
    return grad.indices()[0], grad.values()


def read(table: Tensor, ids_R: Tensor | None) -> Tensor:
    """A copy of the rows, or the table itself for all rows; change it in place, then `write`."""
    return table if ids_R is None else table.index_select(0, ids_R)


def write(table: Tensor, ids_R: Tensor | None, rows_R: Tensor) -> None:
    """Write back rows that `read` returned."""
    if ids_R is None:
        return
    if _fits_complex128(table):
        # index_copy_ goes element by element, so larger elements make it faster: 2000 rows of 256
        # on one core take 0.19 ms as floats, 0.07 ms as complex doubles (0.33, 0.22 ms uncached).
        table, rows_R = table.view(torch.complex128), rows_R.view(torch.complex128)
    table.index_copy_(0, ids_R, rows_R)


def add(table: Tensor, ids_R: Tensor | None, rows_R: Tensor) -> None:
    """table[ids] += rows."""
    rows_R = rows_R.to(table.dtype)
    if ids_R is None:
        table.add_(rows_R)
    elif table.ndim == 2 and table.device.type == "cpu":
        # 2000 cached rows of 256 on one core: 0.08 ms, and index_add_ 0.15 ms; uncached no slower.
        table.scatter_add_(0, ids_R[:, None].expand_as(rows_R), rows_R)
    else:
        table.index_add_(0, ids_R, rows_R)


def add_scaled(table: Tensor, ids_R: Tensor | None, rows_R: Tensor, scale_R: Tensor) -> None:
    """table[ids] += scale * rows, with one number of `scale_R` for each row."""
    scale_R = column(scale_R, rows_R)
    if ids_R is None and table.dtype is rows_R.dtype:
        table.addcmul_(rows_R, scale_R)
    else:
        add(table, ids_R, rows_R * scale_R)


def per_row(parameter: Tensor, value: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """[V]: one number for each row of the parameter."""
    return torch.full(parameter.shape[:1], value, dtype=dtype, device=parameter.device)


def per_element(parameter: Tensor, value: float = 0.0) -> Tensor:
    """[V, D]: one float for each element of the parameter."""
    return torch.full_like(
        parameter, value, dtype=torch.float32, memory_format=torch.contiguous_format
    ).detach()


def column(numbers_R: Tensor, rows_R: Tensor) -> Tensor:
    """Reshape one number per row so that it can be multiplied with the rows."""
    return numbers_R.reshape(rows_R.shape[:1] + (1,) * (rows_R.ndim - 1))


def mean_square(rows_R: Tensor) -> Tensor:
    """[R]: the mean over each row of its squared elements."""
    if rows_R.ndim < 2:
        return rows_R.square()
    # The norm is one fused pass: 0.03 ms for 2000 rows of 256, and pow(2).mean(1) 0.07 ms.
    norm_R: Tensor = torch.linalg.vector_norm(rows_R.flatten(1), dim=1)
    num_columns = rows_R.shape[1:].numel()
    return norm_R.square_().div_(num_columns)


def _fits_complex128(table: Tensor) -> bool:
    return (
        table.device.type == "cpu"
        and table.dtype is torch.float32
        and table.ndim == 2
        and table.is_contiguous()
        and table.shape[1] % 4 == 0
        and table.storage_offset() % 4 == 0
    )
