"""How the rows of M servers make one model, and one model is cut into rows for them.

Server i holds rows i, i + M, i + 2M, ... of every parameter, and the optimiser's state of those
rows. This spreads the load evenly, both where frequent words have the first rows and where the
gates of a layer follow one another. State that belongs to a whole parameter, such as a count of
steps, is on every server.

Every server counts its own updates, and after losses and restarts the counts differ. An entry
`last_X` of an optimiser's state is the value of the count `X` when the row was last updated. Only
the difference of the two, the row's age, has a meaning on another server. So merging keeps ages:
the counts of the first server are used, and the entries `last_X` of the others are shifted to fit
them. The running sum of weight decay (`optim/decay.py`) is treated in the same way: a row is due
the part that was not applied to it yet.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor, nn

from thinwire.exchange.config import ExchangeConfig
from thinwire.optim.config import OptimConfig
from thinwire.optim.decay import APPLIED, SUM
from thinwire.optim.state import NO_STATE, load_named_state, named_state
from thinwire.optim.updater import Updater
from thinwire.parameter_server.shard import Shard

MODEL = "model/"
# A row's reading of a clock is called so, with the clock's name behind it (`optim/ages.py`).
LAST = "last_"
_KINDS = ("rows.", "blocks.")


def every(tensor: Tensor, index: int, count: int) -> Tensor:
    """Rows `index`, `index + count` ... of a tensor, contiguous; with one server, the tensor."""
    if count == 1:
        return tensor
    # Not `contiguous`: that leaves a single element its stride, with which bytes cannot be viewed.
    return tensor[index::count].clone(memory_format=torch.contiguous_format)


def cut(tensors: Mapping[str, Tensor], index: int, count: int) -> dict[str, Tensor]:
    """The rows that server `index` of `count` holds."""
    return {n: every(t, index, count).clone() if t.ndim else t.clone() for n, t in tensors.items()}


def merged(slices: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The parameters and states of all servers, given in order, as one; rows keep their ages.

    A server that has made no update yet lacks the entries that an optimiser makes in its first
    step: they are zero for its rows, as they are before a first step.
    """
    names = dict.fromkeys(name for part in slices for name in part)
    have_state = {_owner(name) for name in names if _entry(name) != NO_STATE}
    whole = {}
    for name in names:
        if _entry(name) == NO_STATE and _owner(name) in have_state:
            continue
        parts = [_part(slices, index, name) for index in range(len(slices))]
        if parts[0].ndim:
            whole[name] = _interleaved(parts)
        else:
            # The least of counts that no row refers to: with it, steps err towards short ones. The
            # first server's are on its device, and the others' have come by message.
            counts = [part.cpu() for part in parts]
            whole[name] = parts[0] if _is_clock(name, names) else torch.stack(counts).amin(0)
    return whole


def _interleaved(parts: Sequence[Tensor]) -> Tensor:
    first = parts[0]
    whole = first.new_empty(sum(map(len, parts)), *first.shape[1:])
    for index, part in enumerate(parts):
        whole[index :: len(parts)] = part
    return whole


def _part(slices: Sequence[Mapping[str, Tensor]], index: int, name: str) -> Tensor:
    """An entry of server `index`, shifted to the counts of the first server."""
    part, owner, entry = slices[index], _owner(name), _entry(name)
    if name not in part:
        like = next(other[name] for other in slices if name in other)
        if not like.ndim:
            return torch.zeros_like(like)
        parameter = owner.partition(".")[2]
        return like.new_zeros(len(part[f"{MODEL}{parameter}"]), *like.shape[1:])
    if not (entry.startswith(LAST) or entry == APPLIED):
        return part[name]
    clock = f"{owner}/{SUM if entry == APPLIED else entry.removeprefix(LAST)}"
    if clock not in part or clock not in slices[0]:
        return part[name]
    return part[name] + (slices[0][clock] - part[clock]).to(part[name])


def _is_clock(name: str, names: Container[str]) -> bool:
    entry = _entry(name)
    return entry == SUM or f"{_owner(name)}/{LAST}{entry}" in names


def _owner(name: str) -> str:
    return name.rpartition("/")[0]


def _entry(name: str) -> str:
    return name.rpartition("/")[2]


def sliced_shard(
    tables: Mapping[str, nn.Parameter],
    blocks: Mapping[str, nn.Parameter],
    index: int,
    count: int,
    optim: OptimConfig,
    config: ExchangeConfig,
) -> Shard:
    """The shard of server `index` of `count`, with copies of its rows and optimisers of its own."""
    own_tables = {n: nn.Parameter(t) for n, t in cut(_detached(tables), index, count).items()}
    own_blocks = {n: nn.Parameter(t) for n, t in cut(_detached(blocks), index, count).items()}
    return Shard(Updater.of(own_tables, own_blocks, optim), config)


def parameters_of(shard: Shard) -> dict[str, Tensor]:
    """A shard's parameters."""
    return _detached(shard.parameters)


def optimizers_of(shard: Shard) -> dict[str, Tensor]:
    """The state of a shard's optimisers, by the names that a run gives it."""
    return {
        f"{kind}{name}": tensor
        for kind, (optimizer, names) in zip(_KINDS, _optimizers(shard), strict=True)
        for name, tensor in named_state(optimizer, names).items()
    }


@torch.no_grad()
def load_shard(
    shard: Shard, parameters: Mapping[str, Tensor], optimizers: Mapping[str, Tensor]
) -> None:
    """Load what `parameters_of` and `optimizers_of` gave; after an error nothing is changed.

    Gradients that wait to be applied are dropped: they were computed on other parameters.

    Raises:
        KeyError: a parameter is missing.
        ValueError: a tensor is of another shape or not finite, or (a UserError) does not fit the
            optimisers.
    """
    for name, parameter in shard.parameters.items():
        if parameters[name].shape != parameter.shape:
            raise ValueError(f"{name} is {list(parameters[name].shape)}, not what it is here")
    for name, tensor in (*parameters.items(), *optimizers.items()):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} is not finite")
    before = [(o, p, o.state.get(p)) for o, names in _optimizers(shard) for p in names]
    try:
        for kind, (optimizer, names) in zip(_KINDS, _optimizers(shard), strict=True):
            own = {n.removeprefix(kind): t for n, t in optimizers.items() if n.startswith(kind)}
            load_named_state(optimizer, names, own)
    except ValueError:
        for optimizer, tensor, state in before:
            if state is None:
                optimizer.state.pop(tensor, None)
            else:
                optimizer.state[tensor] = state
        raise
    shard.drop_gradients()
    for name, parameter in shard.parameters.items():
        parameter.copy_(parameters[name])


def described(tensors: Mapping[str, Tensor]) -> list[list[str | list[int]]]:
    """Names, types and shapes, fit for JSON."""
    return [
        [name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()
    ]


def contents(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Tensors as bytes."""
    return [t.detach().cpu().contiguous().view(-1).view(torch.uint8) for t in tensors.values()]


def restored(
    description: Sequence[Sequence[str | list[int]]], parts: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The tensors that `described` and `contents` describe."""
    return {
        str(name): data.clone().view(getattr(torch, str(dtype))).view(torch.Size(shape))  # type: ignore[arg-type]
        for (name, dtype, shape), data in zip(description, parts, strict=True)
    }


def _optimizers(
    shard: Shard,
) -> list[tuple[torch.optim.Optimizer, dict[Tensor, str]]]:
    return [
        (shard.row_optimizer, {p: n for n, p in shard.tables.items()}),
        (shard.dense_optimizer, {p: n for n, p in shard.blocks.items()}),
    ]


def _detached(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in parameters.items()}
