"""The optimisers of a server, at the scale of one worker that has all the text.

A server makes an update of the mean of k pushes (`exchange.accumulate`), where one worker with the
text of all W makes one of the mean of W batches: it makes r = W / k updates for one of the other.
What a run saves is one worker's, so that it may go on with any exchange; a server turns it into its
own when it begins, and back when it saves.

A gradient is taken to be mostly the noise of its batch, as in `exchange/worker_scale.py`. Then the
mean of k batches has r times the square of the mean of W. So, for what a server has,

- **Adagrad's sums** are r^2 times as large: r times as many squares, each r times as large. Both
  for blocks and for rows, also for a row that one worker alone sees: its gradient is divided by k
  and not by W. The r updates of a server then move as far as the one of a single worker: each is
  of the mean gradient, divided by r times the root. What sums begin with (`initial_accumulator`)
  is multiplied, too.
- **Averages of squares** (Adam's, AdaptAhead's) are r times as large. The count by which Adam
  corrects them says how far they have filled, and stays.
- **Averages of gradients** are the same.
- **Velocities**, sums of steps that are divided by the root of such an average, are sqrt(r) times
  smaller.

RowAdam divides a row's averages by how often updates have touched the row: by weights, which tend
to the part q of updates that do. An update of W batches touches a row that one of k batches touches
with the chance q with the chance 1 - (1 - q)^r. So weights follow this, and averages times weights
what is said above.

Lazy averages decay first, up to now, for ages are counted in updates. SGD has no state.

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
# A weight is rounded so often that more cannot be told from 1.
ALWAYS = 1.0 - 1e-4


def at_servers(
    state: Mapping[str, Tensor], optim: OptimConfig, updates: float
) -> dict[str, Tensor]:
    """One worker's state as a server's that makes so many updates where one worker makes one.

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
    """What `at_servers` was given, for what it has returned."""
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
