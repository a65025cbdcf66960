"""The state of an optimiser by parameter name, as a checkpoint contains it.

Torch's `state_dict` numbers the parameters, so a different order would silently swap their states.
Here each tensor is named `<parameter>/<entry>`: `body.weight_hh_l0/exp_avg`. A parameter without
state, because its optimiser keeps none or has not taken a step yet, is saved as an empty tensor
`<parameter>/none`. So every parameter is saved, and a missing one means that the file is damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thinwire.errors import UserError

NO_STATE = "none"
"""The entry of a parameter that has no state."""


def named_state(optimizer: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The state of every parameter of `optimizer`, by name.

    Args:
        optimizer: a row optimiser, or an optimiser of `torch.optim` with state per parameter.
        names: a distinct name for each of its parameters.

    Returns:
        The tensors themselves, not copies; plain numbers become 0-d tensors.
    """
    tensors: dict[str, Tensor] = {}
    for _, parameter in _parameters(optimizer):
        entries = _entries(optimizer, parameter) or {NO_STATE: torch.empty(0)}
        for entry, value in entries.items():
            tensors[f"{names[parameter]}/{entry}"] = torch.as_tensor(value)
    return tensors


def load_named_state(
    optimizer: Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """Restore the state that `named_state` returned. On an error, nothing is changed.

    Args:
        optimizer: of the same kind as the saved one, with parameters of the same shapes.
        names: a distinct name for each of its parameters.
        tensors: the saved state; entries of other parameters are ignored.

    Raises:
        UserError: an entry is missing, has the wrong shape or type, or is unknown to `optimizer`.
    """
    accepted: list[tuple[Tensor, dict[str, Tensor], dict[str, Any]]] = []
    for group, parameter in _parameters(optimizer):
        name = names[parameter]
        saved = {
            key.rpartition("/")[2]: tensor
            for key, tensor in tensors.items()
            if key.rpartition("/")[0] == name
        }
        initial, after_a_step = _template(optimizer, group, parameter)
        if saved.keys() == {NO_STATE} and not initial:
            accepted.append((parameter, saved, {}))
        else:
            expected = _entries(optimizer, parameter) or after_a_step or {NO_STATE: torch.empty(0)}
            _check(name, type(optimizer).__name__, saved, expected)
            accepted.append((parameter, saved, expected))

    for parameter, saved, expected in accepted:
        optimizer.state[parameter] = {
            entry: saved[entry].to(like.device, copy=True)
            if isinstance(like, Tensor)
            else type(like)(saved[entry].item())
            for entry, like in expected.items()
        }


def _parameters(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield group, parameter


def _entries(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    state = optimizer.state.get(parameter, {})
    return {entry: value for entry, value in state.items() if value is not None}


def _template(
    optimizer: Optimizer, group: dict[str, Any], parameter: Tensor
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of the state of `parameter`: initially, and after a step.

    They are found by a trial step on one element, because most of torch's optimisers create their
    state in their first step and list its entries nowhere else.
    """
    element = torch.zeros(1, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    make: Any = type(optimizer)
    trial: Optimizer = make([{**group, "params": [element]}], group["lr"])
    initial = _entries(trial, element)
    element.grad = torch.zeros_like(element)
    trial.step()
    after_a_step = {
        entry: value.expand(parameter.shape)
        if isinstance(value, Tensor) and value.ndim > 0
        else value
        for entry, value in _entries(trial, element).items()
    }
    return initial, after_a_step


def _check(
    name: str, optimizer: str, saved: Mapping[str, Tensor], expected: Mapping[str, Any]
) -> None:
    """Make sure that the saved entries of a parameter have the expected names, shapes and types."""
    unknown, missing = saved.keys() - expected.keys(), expected.keys() - saved.keys()
    if unknown and (not missing or expected.keys() == {NO_STATE}):
        raise UserError(
            f"The saved state of {name} holds {_listed(unknown)}, which {optimizer} does not know."
        )
    if missing:
        raise UserError(
            f"The saved state of {name} lacks {_listed(missing)}, which {optimizer} needs; it "
            f"holds {_listed(saved) or 'nothing'}."
        )
    for entry, like in expected.items():
        needed, found_tensor = torch.as_tensor(like), saved[entry]
        if found_tensor.shape != needed.shape or found_tensor.dtype != needed.dtype:
            raise UserError(
                f"The saved state {name}/{entry} is {_describe(found_tensor)}, and {optimizer} "
                f"needs {_describe(needed)}."
            )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
