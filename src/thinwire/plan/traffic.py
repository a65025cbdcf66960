"""Counts the bytes that a step sends, from the corpus, before anything is trained.

Batches are read and samples are drawn as in a run. The sizes of messages are computed from the
numbers of rows (`exchange/sizes.py`, `parameter_server/message_sizes.py`). If there are many
workers, a few of them represent all.

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
from thinwire.training.agreement import STATUS_NUMBERS
from thinwire.wire.codecs import make_codec

STEPS = 6
SAMPLED_WORKERS = 3
# Number of rounds of messages of a sum, of a gather, and of a gather of unknown lengths
# (`transport/c10d.py`).
SUM_ROUNDS, GATHER_ROUNDS, UNKNOWN_ROUNDS = 2, 1, 2


@dataclass(frozen=True)
class Sent:
    """Mean traffic of a worker per step, in bytes unless another unit is given.

    Attributes:
        early: bytes that are sent while other gradients are computed.
        late: bytes that are sent when all gradients are computed.
        down: bytes received (async: the replies to pulls).
        dense: bytes sent (async: sent and received) if all parameters were exchanged in fp32.
        rows: number of rows that are updated, over all tables.
        both_ways: whether `dense` includes received bytes.
        awaited: the part of `down` without which a step cannot begin (async).
        merged: number of rows that the outer step merges (periodic).
        other_codecs: the part of `down` in codecs other than that of gradients, by codec (async).
        rounds: number of rounds of messages between all workers (sync, periodic).
        turns: number of turns (periodic).
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
        """Bytes sent."""
        return self.early + self.late

    @property
    def dense_share(self) -> float:
        """The fraction of the dense bytes that is sent (async: and received)."""
        return (self.up + (self.down if self.both_ways else 0.0)) / self.dense


class TrafficCounter:
    """Counts the traffic of exchanges for one corpus, model and loss.

    Args:
        corpus: the data folder.
        config: model, loss, data and exchange settings.
        model: a model with these settings. Its parameters are not read.
    """

    def __init__(self, corpus: Corpus, config: RunConfig, model: LanguageModel) -> None:
        self.corpus, self.config, self.model = corpus, config, model
        self.tables, self.blocks = model.tables(), model.blocks()
        self.num_parameters = sum(p.numel() for p in (*self.tables.values(), *self.blocks.values()))
        self.block_shapes = [tuple(block.shape) for block in self.blocks.values()]
        self._touched_by_steps: dict[tuple[int, int, int, bool], list[list[Touched]]] = {}

    def sync(self, num_workers: int, codec: str, *, everything: bool = False) -> Sent:
        """The mean traffic of a step of the synchronous exchange."""
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
            late.append(both - early[-1] + total_bytes(num_workers, STATUS_NUMBERS))
            rows.append(self._merged_rows(touched_by, num_workers))
            gathers = [not everything and _has_unshared(part) for part in (only_early, only_late)]
            # The blocks are among the late sums.
            rounds.append(sync_rounds(bool(only_early) + 1, sum(gathers)))
        dense = 2 * (num_workers - 1) / num_workers * 4 * self.num_parameters
        up = mean(early) + mean(late)
        return Sent(mean(early), mean(late), up, dense, mean(rows), rounds=mean(rounds))

    def periodic(self, num_workers: int, codec: str, *, everything: bool = False) -> Sent:
        """The mean traffic of a step of the periodic exchange, over all turns of an interval."""
        exchange = self.config.exchange
        turns = Turns.of(exchange)
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
                turn.blocks.shapes(self.block_shapes),
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
        up = (sent + len(taken) * total_bytes(num_workers, STATUS_NUMBERS)) / H
        dense = 2 * (num_workers - 1) / num_workers * 4 * self.num_parameters / exchange.local_steps
        rounds = len(taken) * (UNKNOWN_ROUNDS + SUM_ROUNDS + GATHER_ROUNDS) / H
        num_turns = len(taken) / H
        return Sent(up, 0.0, up, dense, rows, merged=merged / H, rounds=rounds, turns=num_turns)

    def _changed(self, of_worker: Sequence[Touched]) -> dict[str, Tensor]:
        """For each table, whether a worker's steps change a row, `[V]`."""
        changed = {n: torch.zeros(len(t), dtype=torch.bool) for n, t in self.tables.items()}
        for touched in of_worker:
            for name, ids in touched.rows.items():
                changed[name][slice(None) if ids is None else ids.cpu()] = True
        return changed

    def asynchronous(self, num_workers: int, codec: str, *, everything: bool = False) -> Sent:
        """The mean traffic of a step of one worker of the asynchronous exchange."""
        gradients = make_codec(codec)
        parameters = ParameterCodec(codec)
        block_codec = parameters.of_blocks(whole=False)
        names = [*self.tables, *self.blocks]
        block_bytes = sum(block_codec.num_bytes(shape) for shape in self.block_shapes)
        up, down, awaited, rows = [], [], [], []
        steps = [touched_by[0] for touched_by in self._steps(num_workers, num_sampled_workers=1)]
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
            # The rows of tables are requested twice. Ahead of the step, the reply contains the rows
            # that the previous step has not pulled. When the step begins, together with the blocks,
            # the reply contains the rows that one push of each worker has changed meanwhile.
            asked, ahead, changed = 0, 0.0, 1.0
            if not everything:
                asked = pull_bytes(len(names), groups)
                new = 1.0 - _common_fraction(touched, [steps[number - 1]])
                ahead = new * rows_bytes(parameters.whole, masked, shapes)
                others = [*steps[number + 1 :], *steps[:number]]
                changed = _common_fraction(touched, others[:num_workers])
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
        """Mean number of rows that a step of one worker updates, over all tables."""
        return mean(_num_rows(t[0], self.tables) for t in self._steps(1))

    def _steps(
        self,
        num_workers: int,
        num_steps: int = STEPS,
        num_sampled_workers: int = SAMPLED_WORKERS,
        *,
        draws_differ: bool = False,
    ) -> list[list[Touched]]:
        """For each of some steps, what a few of the workers touch. The result is cached."""
        asked = num_workers, num_steps, num_sampled_workers, draws_differ
        if asked in self._touched_by_steps:
            return self._touched_by_steps[asked]
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
            for worker in range(min(num_workers, num_sampled_workers))
        ]
        device = next(iter(self.tables.values())).device
        self._touched_by_steps[asked] = [
            [
                self.model.touch(
                    next(reader).to(device), step * num_workers + worker if draws_differ else step
                ).touched
                for worker, reader in enumerate(readers)
            ]
            for step in range(num_steps)
        ]
        return self._touched_by_steps[asked]

    def touched_tables(self, touched: Touched) -> list[TouchedTables]:
        """The rows of tables that one worker touches; tables with the same ids form a group."""
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
        """The number of rows that all workers together touch, estimated from a few workers."""
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
            # Every further worker is assumed to add as many rows as the last one.
            before = len(torch.cat(own[:-1]).unique()) if len(own) > 1 else 0
            further = max(0, num_workers - len(own)) * (union - before)
            total += shared + min(len(table), union + further)
        return total


def sync_rounds(num_sums: int, num_gathers: int) -> int:
    """The number of rounds of messages of a step of the synchronous exchange.

    Args:
        num_sums: number of sums of values: of the early ones, and of the late ones.
        num_gathers: number of gathers of unshared rows.
    """
    ids, status = UNKNOWN_ROUNDS, GATHER_ROUNDS
    return ids + SUM_ROUNDS * num_sums + GATHER_ROUNDS * num_gathers + status


def _has_unshared(tables: Sequence[TouchedTables]) -> bool:
    """Whether a worker touches unshared rows of these tables."""
    return any(t.num_own is not None for t in tables)


def _common_fraction(touched: Touched, others: Sequence[Touched]) -> float:
    """The fraction of a step's rows that these other steps touch too."""
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
