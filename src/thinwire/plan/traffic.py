"""What a step touches and sends, counted from the corpus itself before anything is trained.

Batches are read and samples drawn as a run would; sizes follow from the numbers of rows
(`exchange/sizes.py`, `exchange/asynchronous/protocol.py`). For many workers a few of them are
looked at, and stand for all.

W workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from statistics import mean

import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.data.batches import Batches
from thinwire.data.corpus import Corpus
from thinwire.exchange.sizes import (
    TouchedTables,
    fragment_shapes,
    periodic_bytes,
    sync_bytes,
    total_bytes,
)
from thinwire.exchange.turns import Turns
from thinwire.exchange.unshared_rows import unshared_rows
from thinwire.language_model import LanguageModel
from thinwire.parameter_server.message_sizes import pull_bytes, push_bytes, rows_bytes
from thinwire.parameter_server.parameter_codec import ParameterCodec
from thinwire.touched import Touched
from thinwire.training.agreement import STATEMENT_NUMBERS
from thinwire.wire.codecs import make_codec

STEPS = 6
WORKERS_LOOKED_AT = 3
# In how many rounds of messages something is summed, gathered, or gathered of unknown length
# (`transport/c10d.py`).
SUM_ROUNDS, GATHER_ROUNDS, UNKNOWN_ROUNDS = 2, 1, 2


@dataclass(frozen=True)
class Sent:
    """Bytes that a worker sends and receives in a step, on average.

    Attributes:
        early: of them, those that go while the rest is computed.
        late: those that go when all is computed.
        down: what a worker receives (async: its pulls' answers).
        dense: bytes sent (async: and received), had all parameters gone in fp32.
        rows: rows that are updated in a step, over all tables.
        merged: rows of several workers that are merged apart from the update (periodic).
        both_ways: whether `dense` counts what is received, too.
        awaited: of `down`, what a step cannot begin without (async).
        other_codecs: of `down`, what travels in other codecs than gradients do (async).
        rounds: in which all workers send each other something (sync, periodic).
        turns: in which they are (periodic).
    """

    early: float
    late: float
    down: float
    dense: float
    rows: float
    both_ways: bool = False
    awaited: float = 0.0
    merged: float = 0.0
    other_codecs: Mapping[str, float] = field(default_factory=dict)
    rounds: float = 0.0
    turns: float = 0.0

    @property
    def up(self) -> float:
        """All that is sent."""
        return self.early + self.late

    @property
    def dense_share(self) -> float:
        """What it is of the dense bytes."""
        return (self.up + (self.down if self.both_ways else 0.0)) / self.dense


class Counter:
    """Counts for one corpus, model and loss.

    Args:
        corpus: the data folder.
        config: model, loss, data and exchange settings.
        model: of these settings; its parameters are not read.
    """

    def __init__(self, corpus: Corpus, config: RunConfig, model: LanguageModel) -> None:
        self.corpus, self.config, self.model = corpus, config, model
        self.tables, self.blocks = model.tables(), model.blocks()
        self.num_parameters = sum(p.numel() for p in (*self.tables.values(), *self.blocks.values()))
        self.block_shapes = [tuple(block.shape) for block in self.blocks.values()]
        self._looked_at: dict[tuple[int, int, int, bool], list[list[Touched]]] = {}

    def sync(self, num_workers: int, codec: str, *, everything: bool = False) -> Sent:
        """A step of the synchronous exchange."""
        exchange = self.config.exchange
        early, late, rows, rounds = [], [], [], []
        for touched_by in self._steps(num_workers):
            first = touched_by[0]
            tables = self.touched_tables(first)
            fraction = 1.0 if everything else exchange.hidden_fraction
            both = sync_bytes(
                num_workers,
                codec,
                tables,
                self.block_shapes,
                everything=everything,
                hidden_fraction=fraction,
            )
            are_early = [first.is_early(names[0]) for names, _ in first.groups()]
            only_early = [*compress(tables, are_early)]
            only_late = [table for table in tables if table not in only_early]
            early.append(sync_bytes(num_workers, codec, only_early, [], everything=everything))
            late.append(both - early[-1] + total_bytes(num_workers, STATEMENT_NUMBERS))
            rows.append(self._merged_rows(touched_by, num_workers))
            gathers = [not everything and _has_own(part) for part in (only_early, only_late)]
            # The blocks are among the late sums.
            rounds.append(sync_rounds(bool(only_early) + 1, sum(gathers)))
        dense = 2 * (num_workers - 1) / num_workers * 4 * self.num_parameters
        up = mean(early) + mean(late)
        return Sent(mean(early), mean(late), up, dense, mean(rows), rounds=mean(rounds))

    def periodic(self, num_workers: int, codec: str, *, everything: bool = False) -> Sent:
        """A step of the periodic exchange: its turns, spread over their interval."""
        exchange = self.config.exchange
        turns, F = Turns.of(exchange), exchange.fragments
        H = turns.row_steps
        steps = self._steps(num_workers, num_steps=H, draws_differ=True)
        changed_by = [self._changed(of_worker) for of_worker in zip(*steps, strict=True)]
        taken = [turn for step in range(1, H + 1) if (turn := turns.after(step)) is not None]
        sent = 0
        for turn in taken:
            tables = []
            for name, mask_V in changed_by[0].items():
                ids, num_rows = turn.rows.ids_where(mask_V), turn.rows.num_rows(len(mask_V))
                own = num_rows if everything else len(ids)
                gap = turn.rows.stride if everything else _largest_gap(ids)
                shape = tuple(self.tables[name].shape[1:])
                tables.append(TouchedTables([shape], num_rows, own, gap))
            sent += periodic_bytes(
                num_workers,
                codec,
                tables,
                fragment_shapes(self.block_shapes, turn.blocks.first, F),
                everything=everything,
                accumulators=self.config.optim.rows == "adagrad",
            )
        merged = self._merged_rows(
            [
                Touched({n: mask_V.nonzero().squeeze(1) for n, mask_V in by.items()})
                for by in changed_by
            ],
            num_workers,
        )
        rows = mean(_num_rows(by_worker[0], self.tables) for by_worker in steps)
        up = (sent + len(taken) * total_bytes(num_workers, STATEMENT_NUMBERS)) / H
        dense = 2 * (num_workers - 1) / num_workers * 4 * self.num_parameters / exchange.local_steps
        rounds = len(taken) * (UNKNOWN_ROUNDS + SUM_ROUNDS + GATHER_ROUNDS) / H
        num_turns = len(taken) / H
        return Sent(up, 0.0, up, dense, rows, merged=merged / H, rounds=rounds, turns=num_turns)

    def _changed(self, of_worker: Sequence[Touched]) -> dict[str, Tensor]:
        """For each table, whether a worker's steps have changed a row, `[V]`."""
        changed = {n: torch.zeros(len(t), dtype=torch.bool) for n, t in self.tables.items()}
        for touched in of_worker:
            for name, ids in touched.rows.items():
                changed[name][slice(None) if ids is None else ids.cpu()] = True
        return changed

    def asynchronous(self, num_workers: int, codec: str, *, everything: bool = False) -> Sent:
        """A step of one worker of the asynchronous exchange."""
        gradients = make_codec(codec)
        parameters = ParameterCodec(codec)
        block_codec = parameters.of_blocks(whole=False)
        names = [*self.tables, *self.blocks]
        block_bytes = sum(block_codec.num_bytes(shape) for shape in self.block_shapes)
        up, down, awaited, rows = [], [], [], []
        steps = [touched_by[0] for touched_by in self._steps(num_workers, num_looked_at=1)]
        for number, touched in enumerate(steps):
            groups: list[tuple[int, int] | None] = []
            masked: list[int | None] = []
            shapes = []
            for group, ids in touched.groups():
                groups.append(None if ids is None else (len(ids), _largest_gap(ids)))
                masked.append(None if ids is None or everything else len(ids))
                for name in group:
                    table = self.tables[name]
                    num_rows = len(table) if ids is None or everything else len(ids)
                    shapes.append((num_rows, *table.shape[1:]))
            # The tables' rows are asked for ahead, which brings those that the step before has not
            # pulled, and once more with the blocks when the step begins, which brings those that
            # one push of each worker has changed meanwhile.
            asked, ahead, changed = 0, 0.0, 1.0
            if not everything:
                asked = pull_bytes(len(names), groups)
                new = 1.0 - _common(touched, [steps[number - 1]])
                ahead = new * rows_bytes(parameters.whole, masked, shapes)
                others = [*steps[number + 1 :], *steps[:number]]
                changed = _common(touched, others[:num_workers])
            groups.append(None)
            masked.append(None)
            asked += pull_bytes(len(names), groups)
            pushed = push_bytes(gradients, len(names), groups, [*shapes, *self.block_shapes])
            up.append(asked + pushed)
            blocks = block_codec, self.block_shapes
            of_rows = rows_bytes(parameters.whole, masked, shapes, *blocks) - block_bytes
            awaited.append(block_bytes + changed * of_rows)
            down.append(ahead + awaited[-1])
            rows.append(_num_rows(touched, self.tables))
        dense = 2 * 4 * self.num_parameters
        received = {parameters.whole.name: mean(down) - block_bytes}
        received[block_codec.name] = received.get(block_codec.name, 0.0) + block_bytes
        return Sent(
            mean(up),
            0.0,
            mean(down),
            dense,
            mean(rows),
            both_ways=True,
            awaited=mean(awaited),
            other_codecs={name: size for name, size in received.items() if name != codec},
        )

    def local_rows(self) -> float:
        """Rows that a step of one worker updates, over all tables."""
        return mean(_num_rows(t[0], self.tables) for t in self._steps(1))

    def _steps(
        self,
        num_workers: int,
        num_steps: int = STEPS,
        num_looked_at: int = WORKERS_LOOKED_AT,
        *,
        draws_differ: bool = False,
    ) -> list[list[Touched]]:
        """For each of some steps, what a few of the workers touch; read once."""
        asked = num_workers, num_steps, num_looked_at, draws_differ
        if asked in self._looked_at:
            return self._looked_at[asked]
        config = self.config
        readers = [
            Batches(
                self.corpus.ids("train"),
                config.data,
                seed=config.run.seed,
                eos_id=self.corpus.meta.eos_id,
                worker=worker,
                num_workers=num_workers,
                num_before=self.model.num_before,
            )
            for worker in range(min(num_workers, num_looked_at))
        ]
        device = next(iter(self.tables.values())).device
        self._looked_at[asked] = [
            [
                self.model.touch(
                    next(reader).to(device), step * num_workers + worker if draws_differ else step
                ).touched
                for worker, reader in enumerate(readers)
            ]
            for step in range(num_steps)
        ]
        return self._looked_at[asked]

    def touched_tables(self, touched: Touched) -> list[TouchedTables]:
        """What one worker touches of the tables, those that it touches alike put together."""
        own = {names.names: names for names in unshared_rows(touched)}
        tables = []
        for group, ids in touched.groups():
            shapes = [tuple(self.tables[name].shape[1:]) for name in group]
            num_rows = len(self.tables[group[0]])
            if ids is None:
                tables.append(TouchedTables(shapes, num_rows, None))
            else:
                mine = own[group]
                gap = _largest_gap(mine.ids_O)
                shared = len(mine.shared_S)
                tables.append(TouchedTables(shapes, num_rows, len(mine.ids_O), gap, shared))
        return tables

    def _merged_rows(self, touched_by: Sequence[Touched], num_workers: int) -> float:
        """Rows that all workers together touch, judged by the few that were looked at."""
        total = 0.0
        for name, table in self.tables.items():
            ids = [touched.rows[name] for touched in touched_by]
            known = [i for i in ids if i is not None]
            if len(known) < len(ids):
                total += len(table)
                continue
            shared = touched_by[0].num_shared.get(name, 0)
            own = [i[shared:] for i in known]
            union = len(torch.cat(own).unique())
            # What each further worker adds, as the last one did.
            before = len(torch.cat(own[:-1]).unique()) if len(own) > 1 else 0
            further = max(0, num_workers - len(own)) * (union - before)
            total += shared + min(len(table), union + further)
        return total


def sync_rounds(num_sums: int, num_gathers: int) -> int:
    """Of a step of the synchronous exchange.

    Args:
        num_sums: how many times values are summed: the early ones, the late ones.
        num_gathers: how many times rows of the workers' own are gathered.
    """
    ids, account = UNKNOWN_ROUNDS, GATHER_ROUNDS
    return ids + SUM_ROUNDS * num_sums + GATHER_ROUNDS * num_gathers + account


def _has_own(tables: Sequence[TouchedTables]) -> bool:
    """Whether a worker has rows of its own among these tables'."""
    return any(t.num_own is not None for t in tables)


def _common(touched: Touched, others: Sequence[Touched]) -> float:
    """The part of a step's rows that these others touch, too."""
    found = total = 0
    for name, ids in touched.rows.items():
        theirs = [other.rows[name] for other in others]
        if ids is None or any(i is None for i in theirs):
            return 1.0
        known = torch.cat([i for i in theirs if i is not None])
        found += int(torch.isin(ids, known).sum())
        total += len(ids)
    return found / total


def _num_rows(touched: Touched, tables: Mapping[str, Tensor]) -> int:
    return sum(len(tables[n]) if ids is None else len(ids) for n, ids in touched.rows.items())


def _largest_gap(ids: Tensor) -> int:
    return int(ids.sort().values.diff().max()) if len(ids) > 1 else 0
