"""Rows that nobody touched have decayed when parameters are read, whatever the exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.language_model import EMBEDDING
from thinwire.training.loop import Trainer
from thinwire.training.replicas import check_replicas
from thinwire.transport.collective import Collective

torch.set_num_threads(1)

DECAY, STEPS = 0.4, 9
RATES = [0.05 * min(1.0, (step + 1) / 4) for step in range(STEPS)]


@dataclass
class Found:
    """A worker's embedding before and after, the rows it touched, and what it read at the end."""

    before: Tensor
    after: Tensor
    touched: set[int]
    fetched: Tensor


def work(data: Path, config: RunConfig, member: Collective | None = None) -> Found:
    trainer = Trainer(None, config, Corpus.open(data), torch.device("cpu"), member)
    table = trainer.run.tables[EMBEDDING]
    before, touched = table.detach().clone(), set()
    with trainer.run.recording(resumed=False):
        for _ in range(STEPS):
            trainer.run.set_rates(0.0)
            if trainer.task is None:
                trainer._touch()
            assert trainer.task is not None
            touched |= set(trainer.task.touched.rows[EMBEDDING].tolist())  # type: ignore[union-attr]
            trainer.train_step()
        fetched = trainer.run.updater.row_optimizer.rows(table)
        trainer.exchange.flush()
        check_replicas(trainer.collective, {**trainer.run.tables, **trainer.run.blocks})
    return Found(before, table.detach().clone(), touched, fetched)


@pytest.mark.parametrize(
    ("size", "exchange"),
    [
        (1, {}),
        (2, {"kind": "sync"}),
        (2, {"kind": "sync", "delay": 1}),
        (2, {"kind": "periodic", "local_steps": 1, "fragments": 1}),
        (3, {"kind": "periodic", "local_steps": 4, "fragments": 2}),
    ],
    ids=str,
)
def test_untouched_rows_decay_by_every_steps_rate(
    size: int,
    exchange: dict[str, Any],
    toy_data: Path,
    tiny: Callable[..., RunConfig],
    together: Callable[..., list[Any]],
) -> None:
    config = tiny(
        optim={"rows": "adamw", "row_lr": 0.05, "weight_decay": DECAY, "warmup_steps": 4},
        exchange=exchange,
        data={"batch": 1, "length": 3},
    )
    found = (
        together(size, partial(work, toy_data, config)) if size > 1 else [work(toy_data, config)]
    )
    before, after = found[0].before, found[0].after
    touched = set().union(*(f.touched for f in found))
    rest = torch.tensor(sorted(set(range(len(before))) - touched))
    assert 0 < len(rest) < len(before)
    # With a delay the embedding's first update comes at the second step, the last when it flushes.
    delay = config.exchange.delay
    rates = RATES[delay:] + RATES[-1:] * delay
    left = prod(1 - rate * DECAY for rate in rates)
    torch.testing.assert_close(after[rest], before[rest] * left)
    left_before_settling = prod(1 - rate * DECAY for rate in RATES[delay:])
    torch.testing.assert_close(found[0].fetched[rest], before[rest] * left_before_settling)
