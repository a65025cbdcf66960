"""What travels between the workers and the servers of an asynchronous run.

D width, M servers.
"""

from __future__ import annotations

import pytest
import torch

from thinwire.optim.config import OptimConfig
from thinwire.parameter_server.connections import Lost
from thinwire.parameter_server.message_sizes import pull_bytes, push_bytes, rows_bytes
from thinwire.wire.codecs import make_codec

from .world import BLOCKS, STEPS, TABLES, Worker, World, touched


def test_only_newer_rows_are_sent_again() -> None:
    world = World()
    a, b = world.worker("a"), world.worker("b")
    values = {}
    for worker in (a, b):
        worker.fetch(0)
        values[worker] = worker.servers.connections[0].meter.received
    a.client.fetch(touched(0))  # once more: nothing is newer
    received = a.servers.connections[0].meter.received - values[a]
    nothing = [(0, 4), (0, 4), (0,), (0, 3), (0,)]
    masked = [3, 5, 6, 6]
    assert received == rows_bytes(make_codec("fp32"), masked, nothing)

    b.fetch(1)
    b.push(1)
    world.flush()
    before = a.servers.connections[0].meter.received
    a.client.fetch(touched(0))
    rows = [set(touched(step).rows["embedding"].tolist()) for step in (0, 1)]
    words = [set(touched(step).rows["output.bias"].tolist()) for step in (0, 1)]
    newer, newer_words = len(rows[0] & rows[1]), len(words[0] & words[1])
    shapes = [(newer, 4), (newer_words, 4), (newer_words,), (6, 3), (6,)]
    received = a.servers.connections[0].meter.received - before
    assert received == rows_bytes(make_codec("fp32"), masked, shapes)
    for name, ids in touched(0).rows.items():
        assert torch.equal(a.tables[name][ids], world.values()[name][ids])


def assert_copies_agree(world: World, worker: Worker) -> None:
    """What the servers believe that a worker holds of the blocks is what it holds."""
    M = len(world.servers)
    for index, server in enumerate(world.servers):
        held = server.sessions[worker.servers.incarnation].held.blocks
        assert held.keys() == BLOCKS.keys()
        for name, copy in held.items():
            assert torch.equal(copy, worker.blocks[name][index::M].detach())


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("select", ["rows", "everything"])
@pytest.mark.parametrize("M", [1, 2])
def test_blocks_travel_as_differences_to_what_a_worker_holds(
    M: int, select: str, codec: str
) -> None:
    world = World(M, codec=codec, select=select)
    workers = [world.worker(name) for name in ("a", "b")]
    for step in range(STEPS):
        for worker in workers:
            worker.fetch(step)
            assert_copies_agree(world, worker)
            worker.push(step)
            world.flush()
    worker = workers[0]
    before = {n: block.detach().clone() for n, block in worker.blocks.items()}
    worker.client.fetch(touched(STEPS))
    for name, block in world.values().items():
        if name in BLOCKS:
            missing = (block - before[name]).abs()
            left = (block - worker.blocks[name].detach()).abs()
            largest = missing.amax(1, keepdim=True) if missing.dim() > 1 else missing.amax()
            # Half a step of 15, or of the 255 that a vector has.
            assert bool((left <= 1.01 * largest / (14 if missing.dim() > 1 else 254)).all())
            assert bool((missing > 0).any())


def test_what_rounding_leaves_out_of_differences_does_not_pile_up() -> None:
    """Blocks that walk at random: a worker stays as near to them after many steps as after few."""
    world = World(codec="int8")
    worker = world.worker()
    generator = torch.Generator().manual_seed(1)
    block = world.shards[0].blocks["body.weight"]
    walk = 0.01
    for step in range(60):
        worker.fetch(step)
        if step:
            error = (block - worker.blocks["body.weight"]).detach().abs()
            # e = (walk + e) / 14, whose limit is walk / 13.
            assert float(error.max()) <= 1.01 * walk / 13
        with torch.no_grad():
            block += walk * (2 * torch.rand(block.shape, generator=generator) - 1)
        world.shards[0].version += 1
        world.shards[0]._changed["body.weight"].fill_(world.shards[0].version)


@pytest.mark.parametrize("M", [1, 2])
def test_differences_of_hidden_blocks_that_travel_in_part(M: int) -> None:
    optim = OptimConfig(kind="sgd", rows="sgd", lr=0.01, row_lr=0.01, clip=0.0)
    world = World(M, optim, codec="int8", hidden_fraction=0.5)
    worker = world.worker()
    for step in range(STEPS):
        worker.fetch(step)
        assert_copies_agree(world, worker)
        worker.push(step)
        world.flush()
    assert all(value.isfinite().all() for value in world.values().values())


def test_after_a_lost_answer_blocks_are_whole_again() -> None:
    """Else a worker would add differences to what it does not hold."""
    world = World(codec="int8")
    worker = world.worker_with(receiving={2: "lost"})
    worker.step(0)
    with pytest.raises(Lost):
        worker.fetch(1)
    other = world.worker("other")
    other.step(0)
    world.flush()
    connection = worker.servers.connections[0]
    before = connection.meter.received
    worker.client.fetch(touched(1))  # without joining again
    some, blocks = [(3, 4), (5, 4), (5,)], list(BLOCKS.values())
    expected = rows_bytes(make_codec("bf16"), [3, 5, 6, 6], [*some, *blocks])
    assert connection.meter.received - before == expected
    assert_copies_agree(world, worker)
    for name, block in world.values().items():
        if name in BLOCKS:
            torch.testing.assert_close(worker.blocks[name], block, rtol=2**-8, atol=0.0)


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("select", ["rows", "everything"])
@pytest.mark.parametrize("M", [1, 2])
def test_every_byte_of_a_step_is_in_the_formula(M: int, select: str, codec: str) -> None:
    world = World(M, codec=codec, select=select)
    worker = world.worker()
    meters = [connection.meter for connection in worker.servers.connections]
    listeners = [listener.meter for listener in world.listeners]
    worker.step(0)
    world.flush()
    before = [(m.sent, m.received) for m in meters]
    worker.step(0)  # the same rows once more, all of which have changed
    world.flush()
    block_codec = make_codec({"fp32": "fp32", "bf16": "bf16"}.get(codec, "int4"))
    own, sent_codec = make_codec("fp32" if codec == "fp32" else "bf16"), make_codec(codec)
    P = len(TABLES) + len(BLOCKS)
    for index, meter in enumerate(meters):
        groups, sizes = [], []
        for name in ("embedding", "output.bias"):
            ids = touched(0).rows[name].sort().values
            ids = ids[ids % M == index] // M
            groups.append((len(ids), int(ids.diff().max()) if len(ids) > 1 else 0))
            sizes.append(len(ids))
        rows = {n: len(range(index, s[0], M)) for n, s in (TABLES | BLOCKS).items()}
        blocks = [(rows["body.weight"], 3), (rows["body.bias"],)]
        some = [(sizes[0], 4), (sizes[1], 4), (sizes[1],)]
        whole = [(rows["embedding"], 4), (rows["output.bias"], 4), (rows["output.bias"],)]
        if select == "everything":
            pulled = pull_bytes(P, [None] * P)
            answered = rows_bytes(own, [None] * P, whole, block_codec, blocks)
            pushed = push_bytes(sent_codec, P, [*groups, None, None], [*whole, *blocks])
        else:
            pulled = pull_bytes(P, [*groups, None, None])
            answered = rows_bytes(own, [*sizes, *(s[0] for s in blocks)], some, block_codec, blocks)
            pushed = push_bytes(sent_codec, P, [*groups, None, None], [*some, *blocks])
        assert meter.sent - before[index][0] == pulled + pushed
        assert meter.received - before[index][1] == answered
        assert (listeners[index].received, listeners[index].sent) == (meter.sent, meter.received)
