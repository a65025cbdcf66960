"""What a run of the synchronous or periodic exchange should have sent, by the documented formulas.

The batches are read and the samples drawn once more, worker by worker; the bytes follow from the
numbers of rows (docs/wire-format.md, `thinwire.exchange.sizes`). They are compared with what the
run's meters counted between two lines of its `metrics.jsonl`. A line of step s was written after s
steps, of which the last one had not yet sent its gradients when its account was taken.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from thinwire.data.batches import Batches
from thinwire.data.corpus import Corpus
from thinwire.exchange.sizes import (
    TouchedTables,
    periodic_bytes,
    sync_bytes,
    total_bytes,
)
from thinwire.exchange.turns import Fragment, Turns
from thinwire.language_model import LanguageModel
from thinwire.plan.traffic import TrafficCounter
from thinwire.runs.folder import RunFolder
from thinwire.touched import Touched
from thinwire.training.agreement import STATUS_NUMBERS
from thinwire.transport.collective import all_gather_bytes
from thinwire.wire.indices import encoded_bytes


def formula_bytes(run: Path, data: Path, workers: int, first: int, last: int) -> int:
    """The bytes that all workers together sent between the lines of steps `first` and `last`."""
    config, corpus = RunFolder.open(run).config, Corpus.open(data)
    counts_V = torch.from_numpy(corpus.counts_V)
    model = LanguageModel(config.model, config.loss, counts_V, config.run.seed, initialise=False)
    counter = TrafficCounter(corpus, config, model)
    count = _sync if config.exchange.kind == "sync" else _periodic
    total = 0
    for rank in range(workers):
        batches = Batches(
            corpus.ids("train"),
            config.data,
            seed=config.run.seed,
            eos_id=corpus.meta.eos_id,
            worker=rank,
            num_workers=workers,
        )
        draws = [config.exchange.sample_number(step, rank, workers) for step in range(last)]
        steps = [model.touch(next(batches), draw).touched for draw in draws]
        total += count(counter, steps, workers, rank, first, last)
    return total


def _sync(
    counter: TrafficCounter, steps: list[Touched], workers: int, rank: int, first: int, last: int
) -> int:
    """Ids go a step ahead of the gradients."""
    exchange = counter.config.exchange
    ids, values = [], []
    for touched in steps:
        tables = counter.touched_tables(touched)
        own = sum(encoded_bytes(t.num_own, t.largest_gap) for t in tables if t.num_own is not None)
        ids.append(all_gather_bytes(workers, own))
        sent = sync_bytes(
            workers,
            exchange.codec,
            tables,
            counter.block_shapes,
            everything=exchange.select == "everything",
            hidden_fraction=exchange.hidden_fraction,
            rank=rank,
        )
        values.append(sent - ids[-1])
    totals = (last - first) * total_bytes(workers, STATUS_NUMBERS)
    return sum(ids[first:last]) + sum(values[first - 1 : last - 1]) + totals


def _periodic(
    counter: TrafficCounter, steps: list[Touched], workers: int, rank: int, first: int, last: int
) -> int:
    """A fragment's turn sends the rows that were touched since its last one; numbers are summed
    at turns only."""
    exchange = counter.config.exchange
    turns = Turns.of(exchange)
    changed: dict[tuple[str, ...], set[int]] = {}
    sent = 0
    for step, touched in enumerate(steps, start=1):
        for group, rows in _groups(touched).items():
            changed.setdefault(group, set()).update(rows)
        turn = turns.after(step)
        if turn is None:
            continue
        tables = [_of_fragment(counter, g, rows, turn.rows) for g, rows in changed.items()]
        if first <= step < last:
            sent += total_bytes(workers, STATUS_NUMBERS)
            sent += periodic_bytes(
                workers,
                exchange.codec,
                tables,
                turn.blocks.shapes(counter.block_shapes),
                everything=exchange.select == "everything",
                accumulators=counter.config.optim.rows == "adagrad",
                rank=rank,
            )
    return sent


def _of_fragment(
    counter: TrafficCounter, group: tuple[str, ...], rows: set[int], fragment: Fragment
) -> TouchedTables:
    """What travels of some tables that are touched alike; those rows have then not changed."""
    own = sorted(row for row in rows if row in fragment)
    rows.difference_update(own)
    gap = max((b - a for a, b in pairwise(own)), default=0)
    tables: list[Any] = [counter.tables[name] for name in group]
    num_rows = fragment.num_rows(len(tables[0]))
    return TouchedTables([tuple(t.shape[1:]) for t in tables], num_rows, len(own), gap)


def _groups(touched: Touched) -> dict[tuple[str, ...], list[int]]:
    """Tables that are touched alike, with their rows."""
    found = {}
    for names, ids in touched.groups():
        assert ids is not None, "a loss that touches some rows"
        found[tuple(names)] = ids.tolist()
    return found
