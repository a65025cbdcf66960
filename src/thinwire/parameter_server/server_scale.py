"""Converts optimiser states between the scale of a server and that of one worker.

A server makes one update of the mean of k pushes (`exchange.accumulate`). One worker that reads the
text of all W workers makes one update of the mean of W batches. So a server makes r = W / k updates
in the time of one. A run saves the state at the scale of one worker, so that it can continue with
any exchange. A server converts this state when it begins, and converts back when it saves.

As in `exchange/worker_scale.py`, a gradient is assumed to be mostly the noise of its batch. Then
the square of the mean of k batches is r times that of the mean of W batches. On a server:

- **Adagrad's sums** are r^2 times as large: r times as many squares, each r times as large. This
  holds for blocks and for rows, and also for a row that only one worker sees: its gradient is
  divided by k and not by W. Then r updates of a server move a parameter as far as one update of a
  single worker, because each divides the mean gradient by r times the root. The initial value of
  the sums (`initial_accumulator`) is multiplied, too.
- **Averages of squares** (Adam's, AdaptAhead's) are r times as large. The count of steps that
  Adam's bias correction uses does not change.
- **Averages of gradients** are the same.
- **Velocities**, sums of steps that are divided by the root of such an average, are sqrt(r) times
  smaller.

RowAdam divides a row's averages by weights, which tend to q, the fraction of updates that touch the
row. If an update of k batches touches a row with probability q, an update of W batches touches it
with probability 1 - (1 - q)^r. Weights are converted by this formula, and the products of averages
and weights as described above.

Lazy averages first decay up to the present, because ages are counted in updates. SGD has no state.

V rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from thinwire.exchange.worker_scale import SMALLEST, WEIGHT
from thinwire.optim.config import OptimConfig
from thinwire.optim.rows import column

LAST, CLOCK = "last_step", "step"
# After rounding, weights above this cannot be told from 1.
ALWAYS = 1.0 - 1e-4


def at_servers(
    state: Mapping[str, Tensor], optim: OptimConfig, updates: float
) -> dict[str, Tensor]:
    """The state of one worker, converted to a server that makes `updates` updates for each one.

    Args:
        state: of both optimisers, as a run names it; it is not changed.
        optim: of what kinds they are.
        updates: r.
    """
    found = dict(state)
    if updates == 1.0:
        return found
    for owner in sorted({name.rpartition("/")[0] for name in state}):
        own = {
            name.rpartition("/")[2]: tensor
            for name, tensor in state.items()
            if name.rpartition("/")[0] == owner
        }
        kind = optim.rows if owner.startswith("rows.") else optim.kind
        for entry, tensor in _at_servers(own, kind, optim, updates):
            found[f"{owner}/{entry}"] = tensor
    return found


def at_one_worker(
    state: Mapping[str, Tensor], optim: OptimConfig, updates: float
) -> dict[str, Tensor]:
    """The inverse of `at_servers`."""
    return at_servers(state, optim, 1.0 / updates)


def _at_servers(
    own: Mapping[str, Tensor], kind: str, optim: OptimConfig, updates: float
) -> Iterator[tuple[str, Tensor]]:
    """The entries of one parameter that change."""
    if "sum" in own:
        yield "sum", own["sum"] * updates**2
    if "exp_avg_sq" in own:
        yield "exp_avg_sq", own["exp_avg_sq"] * updates
    if LAST not in own:
        return
    age_V = (int(own[CLOCK]) - own[LAST]).float()
    yield LAST, torch.full_like(own[LAST], int(own[CLOCK]))
    if kind == "adaptahead":
        decays = {"mean_square": (optim.rho, updates), "velocity": (optim.momentum, updates**-0.5)}
    else:
        decays = {"mean": (optim.beta1, 1.0), "mean_square": (optim.beta2, updates)}
    for entry, (decay, factor) in decays.items():
        value, kept_V = own[entry], decay**age_V
        if f"{entry}{WEIGHT}" not in own:
            yield entry, value * column(kept_V * factor, value)
            continue
        before_V = own[f"{entry}{WEIGHT}"] * kept_V
        after_V = _weight(before_V, 1.0 - decay ** int(own[CLOCK]), updates)
        yield f"{entry}{WEIGHT}", after_V
        yield entry, value * column(factor * before_V / after_V.clamp(min=SMALLEST), value)


def _weight(weight_V: Tensor, most: float, updates: float) -> Tensor:
    """The weights of rows at a server; `most` is that of a row that every update touches."""
    touched_V = weight_V.double() / max(most, SMALLEST)
    server_V = -torch.expm1(torch.log1p(-touched_V.clamp(0.0, 1.0)) / updates)
    return (most * torch.where(touched_V > ALWAYS, 1.0, server_V)).to(weight_V)
