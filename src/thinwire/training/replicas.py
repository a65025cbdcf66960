"""Workers that hold the same model: check that they are equal, and distribute saved states."""

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
        UserError: the parameters of a worker differ from those of the first one.
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


def require_same_run(collective: Collective, config: RunConfig, corpus: Corpus) -> None:
    """Make sure that all workers run the same version, settings and data as the first one.

    Raises:
        UserError: a worker differs; the message gives its value and that of the first worker.
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
    """Gather the tensors of all workers, for one checkpoint.

    Returns:
        `state.I`: the states of the streams, concatenated in the order of the ranks. `own.NAME`:
        the tensors of the exchange that differ between workers, `[W, ...]`. `shared.NAME`: those
        that are equal on all workers.
    """
    return {
        **{f"state.{i}": _stacked(collective, s) for i, s in enumerate(streams)},
        **{f"own.{name}": _stacked(collective, t[None]) for name, t in exchange.own.items()},
        **{f"shared.{name}": tensor for name, tensor in exchange.shared.items()},
    }


def scattered_state(
    collective: Collective, saved: Mapping[str, Tensor], like: ExchangeState
) -> tuple[list[Tensor], ExchangeState]:
    """This worker's part of the result of `gathered_state`, in new memory.

    If the number of workers has changed, the caller must not use the streams' states, and the first
    worker receives the sum of the exchange's tensors of all workers.
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
    """Concatenate the tensors of all workers, in fp32."""
    own = tensor.detach().float().cpu().contiguous()
    parts = collective.all_gather(own.view(-1).view(torch.uint8)).wait()
    return torch.cat([p.clone().view(torch.float32).view(-1, *own.shape[1:]) for p in parts])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def broadcast_state(
    collective: Collective, run: Run, state: dict[str, Any] | None, carry: Mapping[str, Tensor]
) -> tuple[dict[str, Any] | None, Mapping[str, Tensor]]:
    """Send parameters, optimiser state and counts from the first worker to the others.

    Args:
        collective: all workers.
        run: the run of this worker. That of the first worker is loaded already.
        state: the saved state of the first worker; None: there is none, and the run starts afresh.
        carry: the saved stream states of the first worker.

    Returns:
        State and carry, equal on all workers.
    """
    if collective.size == 1:
        return state, carry
    is_first = collective.rank == 0
    optimizer = run.optimizer_state() if is_first and state is not None else {}
    own = {"state": state, "optimizer": _shapes(optimizer), "carry": _shapes(carry)}
    found = collective.all_gather_json(own if is_first else {})[0]
    if found["state"] is None:
        return None, {}
    for parameter in (*run.tables.values(), *run.blocks.values()):
        collective.broadcast(parameter.data)
    optimizer = _received(collective, optimizer, found["optimizer"])
    carry = _received(collective, carry, found["carry"])
    if not is_first:
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
