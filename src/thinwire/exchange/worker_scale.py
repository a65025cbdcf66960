"""Scales optimiser states between one worker with all the text and W workers with parts of it.

A worker that takes local steps computes gradients on its own text. The gradient on all the text is
the mean of W such gradients; its square is 1/W of theirs, because the noise averages out. So a
running square is W times as large on each of W workers as on a single worker:

1. **Spread**, when local steps begin: squares are multiplied by W, velocities, which are sums of
   steps, are divided by sqrt(W), and averages stay as they are.
2. **Merge**, before the state is saved: the mean over the workers, divided by W for squares and
   multiplied by sqrt(W) for velocities.

Merging directly after spreading restores the state. Both the initial accumulator of Adagrad and its
growth become right: mean_w(W A + growth_w) / W = A + sum_w growth_w / W^2, as in
`adagrad_merge.py`. The W workers' steps, each divided by the root of such a square, are merged into
their sum divided by sqrt(W): the mean gradient divided by a single worker's root.

Lazy averages decay while a row is not touched; they are merged after this decay. The bias
correction weights of RowAdam become the largest of any worker. This is exact if all workers touch
the row at the same steps, or if only one of them touches it.

V rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thinwire.exchange.coded import CodedCollective
from thinwire.optim.adaptahead import AdaptAhead
from thinwire.optim.rowadam import RowAdam
from thinwire.optim.rows import column
from thinwire.optim.rowwise import RowSGD
from thinwire.optim.state import NO_STATE, load_named_state, named_state
from thinwire.transport.collective import Collective

SQUARES = ("sum", "exp_avg_sq", "mean_square")
VELOCITIES = ("velocity",)
WEIGHT = "_weight"
SMALLEST = 1e-30
"""Lower limit of a weight: the weight of a row that was never touched is 0."""


def normalises(optimizer: Optimizer) -> bool:
    """Whether the optimiser divides gradients by the root of a running square."""
    return not isinstance(optimizer, (torch.optim.SGD, RowSGD))


@torch.no_grad()
def spread(optimizer: Optimizer, num_workers: int) -> None:
    """Turn one worker's state into that of each of `num_workers`, in place."""
    for state in optimizer.state.values():
        for entry, value in state.items():
            if entry in SQUARES:
                value.mul_(num_workers)
            elif entry in VELOCITIES:
                value.div_(num_workers**0.5)


@torch.no_grad()
def merge(optimizer: Optimizer, parameters: Mapping[str, Tensor], collective: Collective) -> None:
    """Merge the states of all workers into the state of one worker, on each of them.

    All workers must call this. The whole state is sent, in fp32.

    Args:
        optimizer: the optimiser of this worker.
        parameters: all parameters that it updates, by name.
        collective: all workers.
    """
    W, names = collective.size, {parameter: name for name, parameter in parameters.items()}
    own = named_state(optimizer, names) | _decayed_to_now(optimizer, names)
    # A block that a worker has not used yet, such as a cluster of the adaptive loss, has no state.
    everyone = collective.all_gather_json({key: _described(t) for key, t in own.items()})
    known: dict[str, Any] = {key: kind for described in everyone for key, kind in described.items()}
    entries_of: dict[str, set[str]] = {}
    for key in known:
        name, _, entry = key.rpartition("/")
        entries_of.setdefault(name, set()).add(entry)
    merged: dict[str, Tensor] = {}
    for key in sorted(known):
        name, _, entry = key.rpartition("/")
        dtype, count = known[key]
        if entry == NO_STATE:
            if entries_of[name] == {NO_STATE}:
                merged[key] = own[key]
        elif count is not None:
            counts = [described[key][1] for described in everyone if key in described]
            merged[key] = torch.tensor(max(counts), dtype=getattr(torch, dtype))
        elif entry == "last_step":  # the averages of all rows have decayed to now
            merged[key] = torch.full_like(own[key], known[f"{name}/step"][1])
        elif entry.endswith(WEIGHT):
            merged[key] = _largest(collective, own[key])
        else:
            value = own.get(key, torch.zeros_like(parameters[name]).detach())
            merged[key] = _mean(collective, value) * _factor(entry, W)
    for key in merged.keys() & {k.removesuffix(WEIGHT) for k in merged if k.endswith(WEIGHT)}:
        value = merged[key]
        value /= column(merged[key + WEIGHT].clamp(min=SMALLEST), value)
    load_named_state(optimizer, names, merged)


def _decayed_to_now(optimizer: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Lazy averages, decayed up to the current step; each is multiplied by its weight, if any."""
    found = {}
    for group in optimizer.param_groups:
        if isinstance(optimizer, RowAdam):
            beta1, beta2 = group["betas"]
            decays = {"mean": beta1, "mean_square": beta2}
        elif isinstance(optimizer, AdaptAhead):
            decays = {"mean_square": group["rho"], "velocity": group["momentum"]}
        else:
            return {}
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            age_V = (int(state["step"]) - state["last_step"]).float()
            for entry, decay in decays.items():
                kept_V, value = decay**age_V, state[entry]
                if f"{entry}{WEIGHT}" in state:
                    kept_V = kept_V * state[f"{entry}{WEIGHT}"]
                    found[f"{names[parameter]}/{entry}{WEIGHT}"] = kept_V
                found[f"{names[parameter]}/{entry}"] = value * column(kept_V, value)
    return found


def _described(tensor: Tensor) -> list[Any]:
    """The type of a tensor and, if it is a single number, the number."""
    return [str(tensor.dtype).removeprefix("torch."), tensor.item() if tensor.ndim == 0 else None]


def _factor(entry: str, num_workers: int) -> float:
    """The factor of the mean over the workers."""
    if entry in SQUARES:
        return 1.0 / num_workers
    return num_workers**0.5 if entry in VELOCITIES else 1.0


def _mean(collective: Collective, tensor: Tensor) -> Tensor:
    (total,) = CodedCollective(collective, "fp32", seed=0).sum([tensor.float()]).wait()
    return total.to(tensor.device) / collective.size


def _largest(collective: Collective, weight_V: Tensor) -> Tensor:
    own = weight_V.float().cpu().contiguous()
    parts = collective.all_gather(own.view(torch.uint8)).wait()
    largest_V = torch.stack([part.clone().view(torch.float32) for part in parts]).amax(0)
    return largest_V.to(weight_V.device)
