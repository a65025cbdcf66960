"""Weight decay that untouched rows owe is paid before a shard's rows are read."""

from __future__ import annotations

from dataclasses import replace

import torch

from .world import OPTIM, World

DECAY = 0.2


def test_a_shard_pays_the_decay_that_rows_owe_when_it_flushes() -> None:
    optim = replace(OPTIM, rows="adamw", row_lr=0.05, weight_decay=DECAY)
    world = World(optim=optim)
    shard, worker = world.shards[0], world.worker()
    before = world.values()
    steps = 2
    for step in range(steps):
        worker.step(step)
        world.flush()
    assert shard.version == steps
    table = shard.tables["embedding"]
    touched_R = shard._changed["embedding"] > 0
    assert 0 < int((~touched_R).sum()) < len(table)
    left = (1 - 0.05 * DECAY) ** steps
    untouched = before["embedding"][~touched_R]
    assert torch.equal(table[~touched_R].detach(), untouched)
    shard.flush()
    torch.testing.assert_close(table[~touched_R].detach(), untouched * left)
