"""Workers that hold the same model: handing a saved state out, and proving all to be the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.exchange.contract import ExchangeState
from thinwire.runs.run import Run
from thinwire.transport.collective import Collective


def check_replicas(collective: Collective, parameters: Mapping[str, Tensor]) -> None:
    """Compare a hash of every worker's parameters.

    Raises:
        UserError: a worker's differ from the first one's.
    """
    digest = blake2b(digest_size=16)
    for name in sorted(parameters):
        digest.update(name.encode())
        digest.update(parameters[name].detach().cpu().contiguous().numpy().data)
    own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
    digests = [bytes(found.tolist()) for found in collective.all_gather(own).wait()]
    for rank, found in enumerate(digests):
        if found != digests[0]:
            raise UserError(
                f"the replicas differ: {collective.name_of(0)} has parameters with hash "
                f"{digests[0].hex()[:12]}, {collective.name_of(rank)} {found.hex()[:12]}"
            )


def introduce(collective: Collective, config: RunConfig, corpus: Corpus) -> None:
    """Make sure that all workers run the same version, settings and data as the first one.

    Raises:
        UserError: one does not; the sentence names both.
    """
    if collective.size == 1:
        return
    own_machine = replace(config.run, threads=0, device="auto")
    own = {
        "thinwire": __version__,
        "data folder": corpus.meta.fingerprint,
        "settings": replace(config, run=own_machine).fingerprint(),
    }
    first, *others = collective.all_gather_json(own)
    for rank, other in enumerate(others, start=1):
        for what, value in first.items():
            if other[what] != value:
                raise UserError(
                    f"{collective.name_of(rank)} cannot join: its {what} is {other[what]}, and "
                    f"that of {collective.name_of(0)} is {value}"
                )


def gathered_state(
    collective: Collective, streams: Sequence[Tensor], exchange: ExchangeState
) -> dict[str, Tensor]:
    """What only the workers know, each for itself, for one checkpoint.

    `state.I` are the streams' states, those of the first worker first; `own.NAME` the exchange's
    tensors of each worker, `[W, ...]`; `shared.NAME` those that are the same on all.
    """
    return {
        **{f"state.{i}": _stacked(collective, s) for i, s in enumerate(streams)},
        **{f"own.{name}": _stacked(collective, t[None]) for name, t in exchange.own.items()},
        **{f"shared.{name}": tensor for name, tensor in exchange.shared.items()},
    }


def scattered_state(
    collective: Collective, saved: Mapping[str, Tensor], like: ExchangeState
) -> tuple[list[Tensor], ExchangeState]:
    """This worker's part of what `gathered_state` returned, in memory of its own.

    Where there were more or fewer workers, the streams' states are left to the caller, and the
    first worker takes the sum of all that the exchange had on its way.
    """
    rank, W = collective.rank, collective.size
    streams = []
    for i in range(sum(name.startswith("state.") for name in saved)):
        parts = saved[f"state.{i}"].chunk(W)
        streams.append(parts[rank].clone() if rank < len(parts) else parts[0].new_empty(0))
    own = {}
    for name, tensor in like.own.items():
        found = saved.get(f"own.{name}")
        if found is None:
            own[name] = torch.zeros_like(tensor)
        elif len(found) == W:
            own[name] = found[rank].clone()
        else:
            own[name] = found.sum(0) if rank == 0 else torch.zeros_like(tensor)
    shared = _part(saved, "shared.")
    return streams, ExchangeState(shared, own)


def _stacked(collective: Collective, tensor: Tensor) -> Tensor:
    """The workers' tensors one after the other, fp32."""
    own = tensor.detach().float().cpu().contiguous()
    parts = collective.all_gather(own.view(-1).view(torch.uint8)).wait()
    return torch.cat([p.clone().view(torch.float32).view(-1, *own.shape[1:]) for p in parts])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def hand_out(
    collective: Collective, run: Run, state: dict[str, Any] | None, carry: Mapping[str, Tensor]
) -> tuple[dict[str, Any] | None, Mapping[str, Tensor]]:
    """Give every worker what the first one has loaded: parameters, optimiser state, counts.

    Args:
        collective: all workers.
        run: this worker's; the first one's is loaded already.
        state: the first worker's saved state; None: it has none, and all start afresh.
        carry: the first worker's saved stream states.

    Returns:
        State and carry, the same on every worker.
    """
    if collective.size == 1:
        return state, carry
    leads = collective.rank == 0
    optimizer = run.optimizer_state() if leads and state is not None else {}
    own = {"state": state, "optimizer": _shapes(optimizer), "carry": _shapes(carry)}
    found = collective.all_gather_json(own if leads else {})[0]
    if found["state"] is None:
        return None, {}
    for parameter in (*run.tables.values(), *run.blocks.values()):
        collective.broadcast(parameter.data)
    optimizer = _received(collective, optimizer, found["optimizer"])
    carry = _received(collective, carry, found["carry"])
    if not leads:
        run.load_optimizer_state(optimizer)
        run.load_state(found["state"])
    return found["state"], carry


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in tensors.items()}


def _received(
    collective: Collective, tensors: Mapping[str, Tensor], shapes: Mapping[str, Any]
) -> dict[str, Tensor]:
    received = {}
    for name, (dtype, *shape) in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        if tensor.numel():
            collective.broadcast(tensor)
        received[name] = tensor
    return received
