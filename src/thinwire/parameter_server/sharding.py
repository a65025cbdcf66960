"""How the rows of M servers make one model, and one model is cut into rows for them.

Server i holds rows i, i + M, i + 2M, ... of every parameter, and of whatever an optimiser keeps for
each of those rows. Both orders, frequent words first and one layer's gates after another, are so
spread evenly. What an optimiser keeps for a whole parameter, as a count of steps, every server has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from thinwire.exchange.config import ExchangeConfig
from thinwire.optim.build import dense_optimizer, row_optimizer
from thinwire.optim.config import OptimConfig
from thinwire.optim.state import load_named_state, named_state
from thinwire.parameter_server.shard import Shard

MODEL = "model/"
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
    """The whole of what all servers hold, theirs given in order."""
    whole = {}
    for name, first in slices[0].items():
        parts = [part[name] for part in slices]
        if not first.ndim:
            whole[name] = first
            continue
        num_rows = sum(len(part) for part in parts)
        whole[name] = first.new_empty(num_rows, *first.shape[1:])
        for index, part in enumerate(parts):
            whole[name][index :: len(parts)] = part
    return whole


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
    return Shard(
        own_tables,
        own_blocks,
        row_optimizer(own_tables.values(), optim),
        dense_optimizer(own_blocks.values(), optim),
        optim.rates,
        config,
    )


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
    """Take over what `parameters_of` and `optimizers_of` gave."""
    for name, parameter in shard.parameters.items():
        parameter.copy_(parameters[name])
    for kind, (optimizer, names) in zip(_KINDS, _optimizers(shard), strict=True):
        own = {n.removeprefix(kind): t for n, t in optimizers.items() if n.startswith(kind)}
        load_named_state(optimizer, names, own)


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
    """The tensors of such a description and of such bytes."""
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
