"""The periodic exchange: local steps, then an outer step on the rows and blocks that changed.

Each worker updates its own copy as if it were alone. The values that all last agreed on are the
anchor. Rows of tables and of blocks are cut in fragments, by their number, which take turns over an
interval of `local_steps` steps, those of tables over one of `row_steps` (`turns.py`), so that the
link is used evenly. A turn:

1. **Send.** Each worker takes note of the tables' rows that have changed since they were last sent,
   and of the blocks', and sends how far they are from the anchor. The local steps go on meanwhile.
2. **Outer step**, when the next turn comes, or `overlap_steps` steps later. The workers' steps
   on a row become one as `adagrad_merge.py` says, where rows are Adagrad's with one number a
   row. Where another optimiser normalises, the workers' steps on a row or a block come to their
   sum divided by sqrt(W): a worker divides its steps by the deviation of a gradient of its own
   text, which is so much larger than that of all text. Without normalising it is the mean, for a
   row over the workers that changed it. The outcome is applied to the anchor as a gradient, by
   SGD with Nesterov momentum.
3. **Catch up.** Each worker moves its copy by as much as the agreed value differs from the one it
   sent, which is the outer step in place of its own; what it has learnt since stays, to be sent the
   next time.

Source: local steps and the outer optimiser are DiLoCo's (arXiv 2311.08105), fragments that travel
while the steps go on are Streaming DiLoCo's (arXiv 2501.18512). Sending only changed rows, and
merging them by their accumulators, is ours.

O rows of one worker that have changed, R rows that any worker changed, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from thinwire.exchange.adagrad_merge import Accumulators
from thinwire.exchange.coded import CodedCollective, joined
from thinwire.exchange.config import ExchangeConfig
from thinwire.exchange.contract import Exchange, ExchangeState, Traffic
from thinwire.exchange.local import Local
from thinwire.exchange.turns import Fragment, Turn, Turns
from thinwire.exchange.worker_scale import merge, normalises, spread
from thinwire.optim.decay import SUM as DECAY_SUM
from thinwire.optim.decay import mark_paid_until
from thinwire.optim.rows import add, column, read, write
from thinwire.optim.rowwise import RowAdagrad
from thinwire.optim.updater import Updater
from thinwire.touched import Touched
from thinwire.transport.collective import Collective, Pending
from thinwire.wire.codecs import make_codec
from thinwire.wire.indices import decode_ids, encode_ids, ids_bytes

Group = tuple[str, ...]


@dataclass(frozen=True)
class _UnderWay:
    """What is on its way: this worker's steps from the anchor, as they were then."""

    step: int
    turn: Turn
    ids: dict[Group, Tensor]
    steps: dict[str, Tensor]
    """Of rows of tables `[O, ...]` and of blocks `[B, ...]`."""
    decay_sums: dict[str, float]
    """Up to where these steps hold the weight decay of the tables' rows; empty if none decays."""
    gathering: Pending[list[Tensor]]
    summing: Pending[list[Tensor]]


@dataclass(frozen=True)
class _Part:
    """What one worker has sent of a turn's rows."""

    ids: dict[Group, Tensor]
    deltas: dict[str, Tensor]
    grown: dict[str, Tensor]
    """Empty, where rows have no accumulators."""


class Periodic(Exchange):
    """Steps that `updater` takes alone, and a fragment of the model to agree on now and then.

    Args:
        updater: holds this worker's copy and steps on it.
        collective: all workers of the run.
        config: interval, fragments, outer optimiser, codec and selection.
        seed: of stochastic rounding.
    """

    def __init__(
        self, updater: Updater, collective: Collective, config: ExchangeConfig, seed: int
    ) -> None:
        self.updater, self.collective, self.config = updater, collective, config
        self._own = Local(updater)
        self._coded = CodedCollective(collective, config.codec, seed)
        self._everything = config.select == "everything"
        self._turns = Turns.of(config)
        self._parameters: dict[str, Tensor] = {
            name: p.detach() for name, p in {**updater.tables, **updater.blocks}.items()
        }
        self._exact = make_codec("fp32")
        root = collective.size**-0.5
        self._block_rate = root if normalises(updater.dense_optimizer) else 1 / collective.size
        self._row_rate = root if normalises(updater.row_optimizer) else None
        """What the sum of a row's steps is multiplied by; None: their mean is taken."""
        self._accumulators: Accumulators | None = None
        self._anchor: dict[str, Tensor] = {}
        self._momentum: dict[str, Tensor] = {}
        self._changed: dict[Group, Tensor] = {}
        self._under_way: _UnderWay | None = None
        self._step = 0
        self._flushed = True
        self._dense_bytes = 0.0

    def meets(self) -> bool:
        """See `Exchange`: in steps that end with a turn."""
        return self._turns.after(self._step + 1) is not None

    def announce(self, touched: Touched) -> None:
        """Nobody needs to know."""

    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """This worker's own rows."""
        return self._own.fetch(touched)

    def push(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> None:
        """Take note of this worker's own step."""
        if not self._anchor:
            self._begin()
        self._own.push(touched, rows, blocks)
        self._mark(touched)

    def update(self) -> float:
        """Step alone; then let go whose turn it is, if it is anybody's."""
        norm = self._own.update()
        self._step += 1
        self._flushed = False
        turn = self._turns.after(self._step)
        if turn is not None or self._has_travelled:
            self._agree()
        if turn is not None:
            self._send(turn)
        return norm

    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """See `Exchange`."""
        return self._coded.total(numbers)

    def traffic(self) -> Traffic:
        """See `Exchange`."""
        return self._coded.traffic(self._dense_bytes)

    def flush(self) -> None:
        """Agree on everything, whoever's turn it is; then all copies are the anchor."""
        if self._flushed:  # once more would only let the momentum run on
            return
        self._agree()
        for turn in self._turns.all():
            self._send(turn)
            self._agree()
        for name, parameter in self._parameters.items():
            # Catching up comes this near, but for rounding.
            parameter.copy_(self._anchor[name])
        self.updater.flush()
        for name, table in self.updater.tables.items():
            self._anchor[name].copy_(table.detach())
        self._flushed = True

    def merge_optimizers(self) -> None:
        """See `Exchange`; the next step begins as a resumed run does."""
        if not self._anchor:  # no step has been made from one worker's state yet
            return
        updater = self.updater
        if self._accumulators is not None:
            self._accumulators.hand_over()
        else:
            merge(updater.row_optimizer, updater.tables, self.collective)
        merge(updater.dense_optimizer, updater.blocks, self.collective)
        self._anchor, self._accumulators = {}, None

    def state(self) -> ExchangeState:
        """The outer momentum."""
        return ExchangeState(shared=self._momentum)

    def load_state(self, step: int, state: ExchangeState) -> None:
        """See `Exchange`; every worker starts from the same values."""
        self._step, self._flushed = step, True
        self._anchor, self._changed, self._under_way = {}, {}, None
        self._accumulators = None
        self._momentum = {
            name: value.to(self._parameters[name].device, copy=True)
            for name, value in state.shared.items()
        }

    def _begin(self) -> None:
        """Every worker has the same parameters now, and one worker's optimiser state."""
        self._anchor = {name: value.clone() for name, value in self._parameters.items()}
        W, rows = self.collective.size, self.updater.row_optimizer
        spread(self.updater.dense_optimizer, W)
        if isinstance(rows, RowAdagrad):
            self._accumulators = Accumulators(self.updater.tables, rows, W)
        else:
            spread(rows, W)

    @property
    def _has_travelled(self) -> bool:
        overlap, under_way = self.config.overlap_steps, self._under_way
        return bool(overlap) and under_way is not None and self._step >= under_way.step + overlap

    # 1. Send

    def _mark(self, touched: Touched) -> None:
        """Remember the rows that this step changed, once for tables that are touched alike."""
        for names, ids in touched.groups():
            table = self._parameters[names[0]]
            if names not in self._changed:
                self._changed[names] = torch.zeros(len(table), dtype=torch.bool)
            if ids is None:
                self._changed[names].fill_(True)
            else:
                self._changed[names].index_fill_(0, ids.cpu(), True)

    def _send(self, turn: Turn) -> None:
        self._coded.at_step(self._step)
        ids = {group: turn.rows.ids_where(changed) for group, changed in self._changed.items()}
        steps: dict[str, Tensor] = {}
        deltas, grown = [], []
        decay_sums: dict[str, float] = {}
        for group, ids_O in ids.items():
            self._changed[group].index_fill_(0, ids_O, False)
            for name in group:
                table = self.updater.tables[name]
                at = ids_O.to(table.device)
                # So that all workers' steps on a row hold its decay up to the same step, this one.
                self.updater.row_optimizer.flush(table, at)
                state = self.updater.row_optimizer.state[table]
                if DECAY_SUM in state:
                    decay_sums[name] = float(state[DECAY_SUM])
                steps[name] = self._moved(name, at)
                if self._accumulators is not None:
                    grown.append(self._accumulators.growth(name, at))
                if self._everything:
                    deltas.append(self._moved(name, self._all_ids(name, turn.rows)))
                else:
                    deltas.append(steps[name])
        values = [self._coded.encode(deltas), *map(self._exact.encode, grown)]
        message = joined([*map(encode_ids, ids.values()), *(value.cpu() for value in values)])
        gathering = self.collective.all_gather(message)
        blocks = {
            name: self._moved(name, self._all_ids(name, turn.blocks))
            for name in self.updater.blocks
        }
        summing = self._coded.sum(list(blocks.values()))
        self._under_way = _UnderWay(
            self._step, turn, ids, steps | blocks, decay_sums, gathering, summing
        )
        W, F = self.collective.size, self.config.fragments
        num_bytes = sum(4 * p.numel() for p in self._parameters.values())
        self._dense_bytes += 2 * (W - 1) / W * num_bytes / F

    def _all_ids(self, name: str, fragment: Fragment) -> Tensor:
        parameter = self._parameters[name]
        return fragment.ids(len(parameter), parameter.device)

    def _moved(self, name: str, ids_R: Tensor) -> Tensor:
        """How far these rows are from the anchor."""
        anchor_R = self._anchor[name].index_select(0, ids_R)
        return anchor_R.sub_(self._parameters[name].index_select(0, ids_R))

    # 2. Outer step, and 3. catch up

    def _agree(self) -> None:
        """Finish the turn that is on its way, if any."""
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        messages = self._coded.wait(under_way.gathering)
        summed = self._coded.wait(under_way.summing)
        parts = [self._read(message, under_way) for message in messages]
        for group, own_O in under_way.ids.items():
            ids_R = torch.cat([part.ids[group] for part in parts]).unique()
            for name in group:
                at = ids_R.to(self._parameters[name].device)
                merged_R = self._merged(group, name, at, parts)
                self._take(name, at, self._outer_step(name, at, merged_R))
                add(self._parameters[name], own_O.to(at.device), under_way.steps[name])
                if name in under_way.decay_sums:
                    state = self.updater.row_optimizer.state[self.updater.tables[name]]
                    mark_paid_until(state, at, under_way.decay_sums[name])
        for name, delta_B in zip(self.updater.blocks, summed, strict=True):
            parameter, at = self._parameters[name], self._all_ids(name, under_way.turn.blocks)
            mean_B = delta_B.to(parameter.device) * self._block_rate
            self._take(name, at, self._outer_step(name, at, mean_B))
            add(parameter, at, under_way.steps[name])

    def _take(self, name: str, ids_R: Tensor, change_R: Tensor) -> None:
        """Change the anchor, and this copy alike."""
        add(self._anchor[name], ids_R, change_R)
        add(self._parameters[name], ids_R, change_R)

    def _merged(self, group: Group, name: str, ids_R: Tensor, parts: Sequence[_Part]) -> Tensor:
        """One step on these rows of a table out of all workers'."""
        places = [torch.searchsorted(ids_R, part.ids[group].to(ids_R.device)) for part in parts]
        if self._accumulators is not None:
            pieces = [
                (place_O, part.deltas[name], part.grown[name])
                for place_O, part in zip(places, parts, strict=True)
            ]
            return self._accumulators.merged(name, ids_R, pieces)
        total_R = ids_R.new_zeros(
            len(ids_R), *self._parameters[name].shape[1:], dtype=torch.float32
        )
        for place_O, part in zip(places, parts, strict=True):
            add(total_R, place_O, part.deltas[name])
        if self._row_rate is not None:
            return total_R.mul_(self._row_rate)
        visits_R = torch.cat(places).bincount(minlength=len(ids_R))
        return total_R.div_(column(visits_R, total_R))

    def _read(self, message: Tensor, under_way: _UnderWay) -> _Part:
        """What a worker has sent, on the device of the tables."""
        fragment = under_way.turn.rows
        ids: dict[Group, Tensor] = {}
        for group in under_way.ids:
            size = ids_bytes(message)
            ids[group] = decode_ids(message[:size])
            message = message[size:]
        names = [(group, name) for group in under_way.ids for name in group]
        lengths = [len(ids[group]) for group, _ in names]
        sizes = [self._exact.num_bytes((n,)) if self._accumulators else 0 for n in lengths]
        message, *piles = message.split([len(message) - sum(sizes), *sizes])
        shapes = []
        for (_, name), length in zip(names, lengths, strict=True):
            parameter = self._parameters[name]
            whole = fragment.num_rows(len(parameter))
            num_rows = whole if self._everything else length
            shapes.append(Size((num_rows, *parameter.shape[1:])))
        deltas, grown = {}, {}
        decoded = self._coded.decode(message, shapes)
        for (group, name), values, pile in zip(names, decoded, piles, strict=True):
            device = self._parameters[name].device
            place = fragment.places(ids[group])
            deltas[name] = (values[place] if self._everything else values).to(device)
            if self._accumulators is not None:
                grown[name] = self._exact.decode(pile, (len(ids[group]),)).to(device)
        return _Part(ids, deltas, grown)

    def _outer_step(self, name: str, ids_R: Tensor, mean_R: Tensor) -> Tensor:
        """What changes on the anchor; `mean_R` is used up.

        Nesterov: m = mu m + mean; -lr (mean + mu m).
        """
        mu, lr = self.config.outer_momentum, self.config.outer_lr
        if mu:
            momentum = self._momentum.setdefault(name, torch.zeros_like(self._anchor[name]))
            momentum_R = read(momentum, ids_R).mul_(mu).add_(mean_R)
            write(momentum, ids_R, momentum_R)
            mean_R.add_(momentum_R, alpha=mu)
        return mean_R.mul_(-lr)
