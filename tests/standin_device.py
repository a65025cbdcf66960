"""A second device for machines that have one only: a GPU's manners, on the CPU.

Its tensors hold a CPU tensor each and compute with it, but say that they live on `standin`. Like
CUDA's they refuse to meet what lies elsewhere: an operation on tensors of both devices raises
`MixedDevices`, and so does a CPU generator. Allowed is what CUDA allows: to copy across; a CPU
tensor without dimensions among the operands of an elementwise operation; CPU indices in square
brackets.

NumPy cannot read such a tensor, and sparse ones are not made. The device is PyTorch's place for
backends of others, registered for the whole process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
aten = torch.ops.aten

CROSSING = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}
"""Operations that take both devices."""
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
"""Operations whose second argument may lie on the CPU."""


class MixedDevices(RuntimeError):
    """An operation was given tensors of both devices."""


class _Module:
    """What `torch.standin` has to offer."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, _Module())
DEVICE = torch.device(NAME, 0)


class Standin(Tensor):
    """A tensor on the second device; `held` is its CPU tensor."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Standin:
        # For PyTorch's own code it lies on `meta`, whose operations need no second thread.
        made: Standin = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device="meta",
            dispatch_device=True,
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Standin({self.held})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        # With this pair `Module.to` keeps its parameters' identity, as it does for a GPU.
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: Any, meta: None, size: Any, stride: Any) -> Standin:
        return Standin(parts["held"])

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return (_lstm if func is torch.lstm else func)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return DEVICE
        _refuse_mixed(func, args, kwargs)
        return _on_cpu(func, args, kwargs)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    # By hand, for PyTorch's trees take longer than these operations.
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(change, part) for part in value)
    if isinstance(value, dict):
        return {key: _mapped(change, part) for key, part in value.items()}
    return change(value)


def _refuse_mixed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if func in CROSSING:
        return
    elementwise = torch.Tag.pointwise in func.tags or func is aten.fill_.Tensor
    checked = [args[0], *args[2:], kwargs] if func in INDEXING else [args, kwargs]
    for leaf in _leaves(checked):
        if isinstance(leaf, torch.Generator) and leaf.device.type == "cpu":
            raise MixedDevices(f"{func} was given a generator of the CPU for {DEVICE}")
        on_cpu = isinstance(leaf, Tensor) and not isinstance(leaf, Standin)
        if on_cpu and not (elementwise and leaf.ndim == 0):
            shape = list(leaf.shape)
            raise MixedDevices(f"{func} was given {DEVICE} and a CPU tensor of shape {shape}")


def _on_cpu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on what its arguments hold; what comes out lies where they do."""
    wrappers: dict[int, Standin] = {}

    def opened(value: Any) -> Any:
        if isinstance(value, Standin):
            wrappers[id(value.held)] = value
            return value.held
        return value

    device = kwargs.get("device")
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    found = func(*_mapped(opened, args), **_mapped(opened, kwargs))
    to_cpu = device is not None and torch.device(device).type == "cpu"
    if to_cpu or (func is aten.copy_.default and not isinstance(args[0], Standin)):
        return found

    def closed(value: Any) -> Any:
        if isinstance(value, Tensor):  # what was changed in place is still the same tensor
            known = wrappers.get(id(value))
            return Standin(value) if known is None else known
        return value

    return _mapped(closed, found)


def _lstm(
    x_TBE: Tensor, before: Sequence[Tensor], weights: Sequence[Tensor], *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's `lstm` of one layer, from its definition: a GPU has a cell of its own for it."""
    (h, c), (w_x, w_h, b_x, b_h) = (state[0] for state in before), weights
    steps = []
    for x_BE in x_TBE:
        gates = nn.functional.linear(x_BE, w_x, b_x) + nn.functional.linear(h, w_h, b_h)
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        steps.append(h)
    return torch.stack(steps), h[None], c[None]


def _factory(name: str) -> Callable[..., Tensor]:
    operation = getattr(aten, name.split(".")[0])
    overload = getattr(operation, name.split(".")[1] if "." in name else "default")

    def make(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        kwargs["pin_memory"] = None
        return Standin(overload(*args, device=torch.device("cpu"), **kwargs))

    return make


_library = torch.library.Library("aten", "IMPL")
for _name in (
    "empty.memory_format",
    "empty_strided",
    "arange",
    "arange.start",
    "arange.start_step",
):
    _library.impl(_name, _factory(_name), "PrivateUse1")


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What `torch.tensor(numbers, device=...)` ends in."""
    assert isinstance(target, Standin)
    target.held.copy_(source)
    return target


_library.impl("_copy_from", _copy_from, "Meta")
