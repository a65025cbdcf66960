"""The asynchronous exchange: one worker is plain training, several are as stale as they are.

D width, M servers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.optim.config import OptimConfig

from .world import STEPS, World, alone, assert_same, backward, touched

# One worker


@pytest.mark.parametrize(
    "optim",
    [
        OptimConfig(lr=0.05, row_lr=0.3),
        OptimConfig(kind="sgd", rows="sgd", lr=0.05, row_lr=0.05, clip=0.0),
        OptimConfig(kind="adamw", rows="adamw", lr=0.05, row_lr=0.05, weight_decay=0.1),
        OptimConfig(kind="adaptahead", rows="adaptahead", lr=0.01, row_lr=0.01),
        OptimConfig(kind="adagrad", rows="adagrad_full", lr=0.1, row_lr=0.1),
    ],
    ids=lambda optim: f"{optim.kind} {optim.rows}",
)
@pytest.mark.parametrize("select", ["rows", "everything"])
@pytest.mark.parametrize("M", [1, 2, 3])
def test_one_worker_is_plain_training(M: int, select: str, optim: OptimConfig) -> None:
    world = World(M, optim, select=select)
    worker = world.worker()
    for step in range(STEPS):
        worker.step(step)
    world.flush()
    # Vectorised kernels round otherwise where rows lie otherwise in memory.
    tolerance = {} if M == 1 else {"rtol": 1e-5, "atol": 1e-6}
    assert_same(world.values(), alone(optim=optim), **tolerance)
    assert world.taus == [0] * STEPS


@pytest.mark.parametrize("M", [1, 2])
def test_a_loss_that_touches_every_row(M: int) -> None:
    world = World(M)
    worker = world.worker()
    for step in range(STEPS):
        worker.step(step, everything=True)
    world.flush()
    tolerance = {} if M == 1 else {"rtol": 1e-5, "atol": 1e-6}
    assert_same(world.values(), alone(everything=True), **tolerance)


def test_rows_pulled_ahead_are_pulled_again_where_they_have_changed() -> None:
    world = World()
    worker = world.worker()
    tasks = [touched(step) for step in range(5)]
    worker.client.pull_rows(tasks[0])
    for step in range(4):
        world.flush()  # the pull is answered before anything else happens
        if step > 0:
            worker.push(step - 1)
            world.flush()
        worker.rows = worker.client.fetch(tasks[step])
        now = world.values()
        for name, ids in tasks[step].rows.items():
            assert ids is not None and torch.equal(worker.rows[name], now[name][ids])
        for name, block in worker.blocks.items():
            assert torch.equal(block, now[name])
        worker.client.pull_rows(tasks[step + 1])
        backward(worker.rows, worker.blocks, step)
    assert world.taus == [0, 0, 0]


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_codecs_come_near(codec: str) -> None:
    world = World(codec=codec)
    worker = world.worker()
    for step in range(STEPS):
        worker.step(step)
    world.flush()
    near = {"bf16": 0.05, "int8": 0.15}[codec]
    assert_same(world.values(), alone(), atol=near)


@pytest.mark.parametrize("M", [1, 2])
def test_hidden_blocks_travel_in_part_and_are_made_up_for(M: int) -> None:
    optim = OptimConfig(kind="sgd", rows="sgd", lr=0.01, row_lr=0.01, clip=0.0)
    world = World(M, optim, hidden_fraction=0.5)
    worker = world.worker()
    before = world.values()["body.weight"]
    worker.fetch(0)
    assert torch.equal(worker.blocks["body.weight"], before)  # all of it is computed with
    worker.push(0)
    world.flush()
    changed = (world.values()["body.weight"] != before).any(1)
    assert int(changed.sum()) == 3  # of 6 rows
    for step in range(1, 40):
        worker.step(step)
    world.flush()
    after = world.values()["body.weight"]
    assert after.isfinite().all()
    assert (after != before).all()


# StalenessCounts


def test_staleness_is_what_happened_between_pull_and_push() -> None:
    world = World()
    a, b = world.worker("a"), world.worker("b")
    a.fetch(0)
    b.fetch(1)
    a.push(0)
    world.flush()
    a.step(2)
    world.flush()
    b.push(1)
    world.flush()
    assert [(name, staleness.tau) for name, staleness in world.stewards[0].pushes] == [
        ("a", 0),
        ("a", 0),
        ("b", 2),
    ]
    late = world.stewards[0].pushes[2][1]
    mine = touched(1).rows
    theirs = [touched(step).rows for step in (0, 2)]
    changed, total = 0, 0
    for name, ids in mine.items():
        known = torch.cat([rows[name] for rows in theirs])
        changed += int(torch.isin(ids, known).sum())
        total += len(ids)
    assert late.changed_rows == pytest.approx(changed / total)


def test_a_push_beyond_the_bound_is_dropped_and_its_worker_pulls_anew() -> None:
    world = World(staleness_bound=1)
    a, b = world.worker("a"), world.worker("b")
    b.fetch(0)
    ahead = touched(9)
    b.client.pull_rows(ahead)  # looking ahead; it is answered now
    world.flush()
    for step in range(1, 4):
        a.step(step)
    world.flush()
    before = world.values()
    b.push(0)
    world.flush()
    assert world.taus == [0, 0, 0, None]
    assert_same(world.values(), before)
    rows = b.client.fetch(ahead)
    assert b.client.too_old == 1
    for name, ids in ahead.rows.items():
        assert torch.equal(rows[name], before[name][ids])
    backward(rows, b.blocks, 9)
    b.rows = rows
    b.push(9)
    world.flush()
    assert world.taus[-1] == 0


# Pushes that are applied at once


def sgd(**exchange: Any) -> Any:
    optim = OptimConfig(kind="sgd", rows="sgd", lr=0.1, row_lr=0.1, clip=0.0)
    return World(1, optim, **exchange)


def late_pair(world: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Any]:
    """Values at first, after one push, after a second that did not know of it; and who made it."""
    a, b = world.worker("a"), world.worker("b")
    values = [world.values()]
    for worker in (a, b):
        worker.fetch(0, everything=True)
    gradients = {n: leaf.grad.clone() for n, leaf in b.rows.items()}
    gradients |= {n: p.grad.clone() for n, p in b.blocks.items()}
    for worker in (a, b):
        worker.push(0)
        world.flush()
        values.append(world.values())
    return values[0], values[1], values[2], gradients


def test_pushes_that_are_applied_one_by_one() -> None:
    _, middle, last, g = late_pair(sgd())
    assert_same(last, {n: middle[n] - 0.1 * g[n] for n in g}, atol=1e-6)


def test_accumulated_pushes_are_applied_at_once() -> None:
    world = sgd(accumulate=2)
    first, middle, last, g = late_pair(world)
    assert_same(middle, first)
    assert_same(last, {n: first[n] - 0.1 * g[n] for n in g}, atol=1e-6)
    assert world.shards[0].version == 1
    worker = world.worker("c")
    worker.step(3)
    world.flush()
    assert_same(world.values(), last)
    world.shards[0].flush()
    assert not torch.equal(world.values()["body.bias"], last["body.bias"])


def test_accumulated_rows_are_merged() -> None:
    world = sgd(accumulate=3)
    first = world.values()
    workers = [world.worker(str(n)) for n in range(3)]
    total = {n: torch.zeros_like(v) for n, v in first.items()}
    for number, worker in enumerate(workers):
        worker.fetch(number)
        for name, leaf in worker.rows.items():
            total[name].index_add_(0, touched(number).rows[name], leaf.grad)
        for name, block in worker.blocks.items():
            total[name] += block.grad
    for number, worker in enumerate(workers):
        worker.push(number)
    world.flush()
    assert_same(world.values(), {n: first[n] - 0.1 * total[n] / 3 for n in first}, atol=1e-6)
