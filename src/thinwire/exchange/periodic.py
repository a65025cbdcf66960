"""The periodic exchange: local steps, then an outer step on the rows and blocks that changed.

Each worker updates its own copy as if it were alone. The anchor is a second copy: the values on
which all workers last agreed. The rows of tables and blocks are divided into fragments, which take
turns (`turns.py`), so that the link is used evenly. A turn has three phases:

1. **Send.** Each worker sends the difference between the anchor and its copy, for the fragment's
   rows of blocks and for those rows of tables that have changed since they were last sent. The
   local steps continue meanwhile.
2. **Outer step**, when the next turn begins, or `overlap_steps` steps later. The workers' deltas of
   a row are merged into one:
   - If the rows are updated by `RowAdagrad`, as `adagrad_merge.py` describes.
   - If another optimiser normalises gradients: the sum of the deltas divided by sqrt(W). A worker
     divides its steps by the standard deviation of a gradient on its own text, which is sqrt(W)
     times that of a gradient on all text. Blocks are merged in the same way.
   - Otherwise: the mean of the deltas, for a row over the workers that changed it.

   The merged delta is applied to the anchor as a gradient, by SGD with Nesterov momentum.
3. **Catch up.** Each worker replaces the delta that it sent by the outer step. The local steps that
   it took since stay in its copy, and are sent the next time.

Sources: local steps and the outer optimiser are from DiLoCo (arXiv 2311.08105). Fragments that are
sent during the local steps are from Streaming DiLoCo (arXiv 2501.18512). Sending only changed rows,
and merging them by their accumulators, is ours.

O rows that one worker has changed, R rows that any worker has changed, B rows of a block,
W workers.
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
from thinwire.optim.decay import mark_applied_until
from thinwire.optim.rows import add, column, read, write
from thinwire.optim.rowwise import RowAdagrad
from thinwire.optim.updater import Updater
from thinwire.touched import Touched
from thinwire.transport.collective import Collective, Pending
from thinwire.wire.codecs import make_codec
from thinwire.wire.indices import decode_ids, encode_ids, ids_bytes

Group = tuple[str, ...]


@dataclass(frozen=True)
class _InFlight:
    """A turn that was sent and is not finished, with the deltas that this worker has sent."""

    step: int
    turn: Turn
    ids: dict[Group, Tensor]
    deltas: dict[str, Tensor]
    """For rows of tables, `[O, ...]`; for blocks, `[B, ...]`."""
    decay_sums: dict[str, float]
    """For each table, the running sum of weight decay that the deltas include (`optim/decay.py`);
    empty if no table decays."""
    gathering: Pending[list[Tensor]]
    summing: Pending[list[Tensor]]


@dataclass(frozen=True)
class _Part:
    """What one worker has sent of the tables' rows in a turn."""

    ids: dict[Group, Tensor]
    deltas: dict[str, Tensor]
    growth: dict[str, Tensor]
    """The growth of the rows' accumulators; empty if the rows have none."""


class Periodic(Exchange):
    """Local steps by `updater`, and now and then an outer step on a fragment of the model.

    Args:
        updater: holds this worker's copy and updates it.
        collective: all workers of the run.
        config: interval, fragments, outer optimiser, codec and selection.
        seed: seed of stochastic rounding.
    """

    def __init__(
        self, updater: Updater, collective: Collective, config: ExchangeConfig, seed: int
    ) -> None:
        self.updater, self.collective, self.config = updater, collective, config
        self._local = Local(updater)
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
        """The factor of the sum of a row's deltas; None: their mean is used."""
        self._accumulators: Accumulators | None = None
        self._anchor: dict[str, Tensor] = {}
        self._momentum: dict[str, Tensor] = {}
        self._changed: dict[Group, Tensor] = {}
        self._in_flight: _InFlight | None = None
        self._step = 0
        self._is_flushed = True
        self._dense_bytes = 0.0

    def communicates(self) -> bool:
        """See `Exchange`: in steps after which a turn begins."""
        return self._turns.after(self._step + 1) is not None

    def announce(self, touched: Touched) -> None:
        """Nothing to do: only changed rows are sent."""

    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """This worker's own rows."""
        return self._local.fetch(touched)

    def push(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> None:
        """Push to this worker's own copy, and remember which rows change."""
        if not self._anchor:
            self._start_local_steps()
        self._local.push(touched, rows, blocks)
        self._mark_changed(touched)

    def update(self) -> float:
        """Take a local step; then finish the turn in flight and start the next one, if due."""
        norm = self._local.update()
        self._step += 1
        self._is_flushed = False
        turn = self._turns.after(self._step)
        if turn is not None or self._overlap_is_over:
            self._finish_turn()
        if turn is not None:
            self._start_turn(turn)
        return norm

    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """See `Exchange`."""
        return self._coded.total(numbers)

    def traffic(self) -> Traffic:
        """See `Exchange`."""
        return self._coded.traffic(self._dense_bytes)

    def flush(self) -> None:
        """Exchange all fragments at once; afterwards all copies are equal to the anchor."""
        if self._is_flushed:  # a second flush would only apply the momentum again
            return
        self._finish_turn()
        for turn in self._turns.all():
            self._start_turn(turn)
            self._finish_turn()
        for name, parameter in self._parameters.items():
            # After catching up they differ by rounding only.
            parameter.copy_(self._anchor[name])
        self.updater.flush()
        for name, table in self.updater.tables.items():
            self._anchor[name].copy_(table.detach())
        self._is_flushed = True

    def merge_optimizers(self) -> None:
        """See `Exchange`; the next step starts as in a resumed run."""
        if not self._anchor:  # no local step has been taken since the last call
            return
        updater = self.updater
        if self._accumulators is not None:
            self._accumulators.restore_agreed()
        else:
            merge(updater.row_optimizer, updater.tables, self.collective)
        merge(updater.dense_optimizer, updater.blocks, self.collective)
        self._anchor, self._accumulators = {}, None

    def state(self) -> ExchangeState:
        """The outer momentum."""
        return ExchangeState(shared=self._momentum)

    def load_state(self, step: int, state: ExchangeState) -> None:
        """See `Exchange`; every worker starts from the same values."""
        self._step, self._is_flushed = step, True
        self._anchor, self._changed, self._in_flight = {}, {}, None
        self._accumulators = None
        self._momentum = {
            name: value.to(self._parameters[name].device, copy=True)
            for name, value in state.shared.items()
        }

    def _start_local_steps(self) -> None:
        """Set the anchor, and scale the optimisers' state from one worker to each of W.

        All workers must have the same parameters and the same optimiser state.
        """
        self._anchor = {name: value.clone() for name, value in self._parameters.items()}
        W, rows = self.collective.size, self.updater.row_optimizer
        spread(self.updater.dense_optimizer, W)
        if isinstance(rows, RowAdagrad):
            self._accumulators = Accumulators(self.updater.tables, rows, W)
        else:
            spread(rows, W)

    @property
    def _overlap_is_over(self) -> bool:
        overlap, in_flight = self.config.overlap_steps, self._in_flight
        return bool(overlap) and in_flight is not None and self._step >= in_flight.step + overlap

    # 1. Send

    def _mark_changed(self, touched: Touched) -> None:
        """Remember the rows that this step changes, once for tables that share their ids."""
        for names, ids in touched.groups():
            table = self._parameters[names[0]]
            if names not in self._changed:
                self._changed[names] = torch.zeros(len(table), dtype=torch.bool)
            if ids is None:
                self._changed[names].fill_(True)
            else:
                self._changed[names].index_fill_(0, ids.cpu(), True)

    def _start_turn(self, turn: Turn) -> None:
        self._coded.set_step(self._step)
        ids = {group: turn.rows.ids_where(changed) for group, changed in self._changed.items()}
        own: dict[str, Tensor] = {}
        deltas, growth = [], []
        decay_sums: dict[str, float] = {}
        for group, ids_O in ids.items():
            self._changed[group].index_fill_(0, ids_O, False)
            for name in group:
                table = self.updater.tables[name]
                at = ids_O.to(table.device)
                # So that the deltas of all workers include the decay up to the same step, this one.
                self.updater.row_optimizer.flush(table, at)
                state = self.updater.row_optimizer.state[table]
                if DECAY_SUM in state:
                    decay_sums[name] = float(state[DECAY_SUM])
                own[name] = self._delta(name, at)
                if self._accumulators is not None:
                    growth.append(self._accumulators.growth(name, at))
                if self._everything:
                    deltas.append(self._delta(name, self._all_ids(name, turn.rows)))
                else:
                    deltas.append(own[name])
        values = [self._coded.encode(deltas), *map(self._exact.encode, growth)]
        message = joined([*map(encode_ids, ids.values()), *(value.cpu() for value in values)])
        gathering = self.collective.all_gather(message)
        blocks = {
            name: self._delta(name, self._all_ids(name, turn.blocks))
            for name in self.updater.blocks
        }
        summing = self._coded.sum(list(blocks.values()))
        self._in_flight = _InFlight(
            self._step, turn, ids, own | blocks, decay_sums, gathering, summing
        )
        W, F = self.collective.size, self.config.fragments
        num_bytes = sum(4 * p.numel() for p in self._parameters.values())
        self._dense_bytes += 2 * (W - 1) / W * num_bytes / F

    def _all_ids(self, name: str, fragment: Fragment) -> Tensor:
        parameter = self._parameters[name]
        return fragment.ids(len(parameter), parameter.device)

    def _delta(self, name: str, ids_R: Tensor) -> Tensor:
        """The anchor minus this worker's copy, for these rows."""
        anchor_R = self._anchor[name].index_select(0, ids_R)
        return anchor_R.sub_(self._parameters[name].index_select(0, ids_R))

    # 2. Outer step, and 3. catch up

    def _finish_turn(self) -> None:
        """Take the outer step of the turn that is in flight, if any, and catch up."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is None:
            return
        messages = self._coded.wait(in_flight.gathering)
        summed = self._coded.wait(in_flight.summing)
        parts = [self._decode(message, in_flight) for message in messages]
        for group, ids_O in in_flight.ids.items():
            ids_R = torch.cat([part.ids[group] for part in parts]).unique()
            for name in group:
                at = ids_R.to(self._parameters[name].device)
                merged_R = self._merge_rows(group, name, at, parts)
                self._apply_to_both(name, at, self._outer_step(name, at, merged_R))
                add(self._parameters[name], ids_O.to(at.device), in_flight.deltas[name])
                if name in in_flight.decay_sums:
                    state = self.updater.row_optimizer.state[self.updater.tables[name]]
                    mark_applied_until(state, at, in_flight.decay_sums[name])
        for name, delta_B in zip(self.updater.blocks, summed, strict=True):
            parameter, at = self._parameters[name], self._all_ids(name, in_flight.turn.blocks)
            mean_B = delta_B.to(parameter.device) * self._block_rate
            self._apply_to_both(name, at, self._outer_step(name, at, mean_B))
            add(parameter, at, in_flight.deltas[name])

    def _apply_to_both(self, name: str, ids_R: Tensor, change_R: Tensor) -> None:
        """Add a change to the anchor and to this worker's copy."""
        add(self._anchor[name], ids_R, change_R)
        add(self._parameters[name], ids_R, change_R)

    def _merge_rows(self, group: Group, name: str, ids_R: Tensor, parts: Sequence[_Part]) -> Tensor:
        """Merge all workers' deltas of these rows of a table into one."""
        positions = [torch.searchsorted(ids_R, part.ids[group].to(ids_R.device)) for part in parts]
        if self._accumulators is not None:
            parts_of_rows = [
                (index_O, part.deltas[name], part.growth[name])
                for index_O, part in zip(positions, parts, strict=True)
            ]
            return self._accumulators.merged(name, ids_R, parts_of_rows)
        total_R = ids_R.new_zeros(
            len(ids_R), *self._parameters[name].shape[1:], dtype=torch.float32
        )
        for index_O, part in zip(positions, parts, strict=True):
            add(total_R, index_O, part.deltas[name])
        if self._row_rate is not None:
            return total_R.mul_(self._row_rate)
        num_workers_R = torch.cat(positions).bincount(minlength=len(ids_R))
        return total_R.div_(column(num_workers_R, total_R))

    def _decode(self, message: Tensor, in_flight: _InFlight) -> _Part:
        """Decode the message of a worker; its tensors are moved to the device of the tables."""
        fragment = in_flight.turn.rows
        ids: dict[Group, Tensor] = {}
        for group in in_flight.ids:
            size = ids_bytes(message)
            ids[group] = decode_ids(message[:size])
            message = message[size:]
        names = [(group, name) for group in in_flight.ids for name in group]
        lengths = [len(ids[group]) for group, _ in names]
        sizes = [self._exact.num_bytes((n,)) if self._accumulators else 0 for n in lengths]
        message, *encoded_growth = message.split([len(message) - sum(sizes), *sizes])
        shapes = []
        for (_, name), length in zip(names, lengths, strict=True):
            parameter = self._parameters[name]
            whole = fragment.num_rows(len(parameter))
            num_rows = whole if self._everything else length
            shapes.append(Size((num_rows, *parameter.shape[1:])))
        deltas, growth = {}, {}
        decoded = self._coded.decode(message, shapes)
        for (group, name), values, row_growth in zip(names, decoded, encoded_growth, strict=True):
            device = self._parameters[name].device
            position = fragment.positions(ids[group])
            deltas[name] = (values[position] if self._everything else values).to(device)
            if self._accumulators is not None:
                growth[name] = self._exact.decode(row_growth, (len(ids[group]),)).to(device)
        return _Part(ids, deltas, growth)

    def _outer_step(self, name: str, ids_R: Tensor, mean_R: Tensor) -> Tensor:
        """The change of the anchor's rows. It is computed in `mean_R` itself.

        Nesterov: m = mu m + mean; the change is -lr (mean + mu m).
        """
        mu, lr = self.config.outer_momentum, self.config.outer_lr
        if mu:
            momentum = self._momentum.setdefault(name, torch.zeros_like(self._anchor[name]))
            momentum_R = read(momentum, ids_R).mul_(mu).add_(mean_R)
            write(momentum, ids_R, momentum_R)
            mean_R.add_(momentum_R, alpha=mu)
        return mean_R.mul_(-lr)
