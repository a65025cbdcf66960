"""The asynchronous exchange: one worker is plain training, several are as stale as they are.

D width, M servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thinwire.errors import UserError
from thinwire.exchange.asynchronous import servers as servers_module
from thinwire.exchange.asynchronous.client import Client
from thinwire.exchange.asynchronous.protocol import (
    Kind,
    Position,
    Push,
    pull_bytes,
    push_bytes,
    rows_bytes,
    say,
    say_json,
)
from thinwire.exchange.asynchronous.server import Numbers, Server, Session, Steward
from thinwire.exchange.asynchronous.servers import Lost, Servers, Stopped
from thinwire.exchange.asynchronous.shard import Shard
from thinwire.exchange.asynchronous.slices import merged, parameters_of, sliced_shard
from thinwire.exchange.asynchronous.staleness import Lateness
from thinwire.exchange.config import ExchangeConfig
from thinwire.exchange.local import Local
from thinwire.optim.build import dense_optimizer, row_optimizer
from thinwire.optim.config import OptimConfig
from thinwire.touched import Touched
from thinwire.transport.messages import Fate, InProcessDoor, Line, UnreliableLine
from thinwire.wire.codecs import make_codec

torch.set_num_threads(1)
STEPS = 12
TABLES = {"embedding": (7, 4), "output.weight": (11, 4), "output.bias": (11,)}
BLOCKS = {"body.weight": (6, 3), "body.bias": (6,)}
OPTIM = OptimConfig(lr=0.05, row_lr=0.3, clip=1.0)


def parameters() -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(7)
    tables = {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in TABLES.items()}
    blocks = {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in BLOCKS.items()}
    return tables, blocks


def touched(step: int, *, everything: bool = False) -> Touched:
    """Other rows for every step; unsorted, as those of a sample and its targets are."""
    if everything:
        return Touched(dict.fromkeys(TABLES))
    generator = torch.Generator().manual_seed(step)
    words = torch.randperm(11, generator=generator)[:5]
    rows = {"embedding": torch.randperm(7, generator=generator)[:3]}
    return Touched({**rows, "output.weight": words, "output.bias": words})


def backward(rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor], step: int) -> float:
    """A loss whose gradient depends on the values that were fetched, and on the step."""
    loss = sum(((leaf + 0.1 * step) ** 2).sum() for leaf in (*rows.values(), *blocks.values()))
    assert isinstance(loss, Tensor)
    loss.backward()
    return float(loss.detach())


class Alone:
    """What one worker finds without a server."""

    def __init__(self, optim: OptimConfig = OPTIM) -> None:
        self.tables, self.blocks = parameters()
        rows, dense = row_optimizer(self.tables.values(), optim), self.blocks.values()
        optimizer = dense_optimizer(dense, optim)
        self.exchange = Local(self.tables, self.blocks, rows, optimizer, optim.clip)

    def step(self, step: int, *, everything: bool = False) -> None:
        task = touched(step, everything=everything)
        rows = self.exchange.fetch(task)
        backward(rows, self.blocks, step)
        self.exchange.push(task, rows)

    def values(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in (*self.tables.items(), *self.blocks.items())}


class Counting(Steward):
    """Takes every worker, and writes down what happens."""

    def __init__(self, shard: int, num_shards: int) -> None:
        self.about = {"run": "a", "shard": shard, "num_shards": num_shards, "settings": {}}
        self.pushes: list[tuple[str, Lateness | None]] = []
        self.gone: list[str] = []
        self.ready = True
        self.num_joined = 0

    def welcome(self, session: Session, before: Session | None) -> dict[str, Any] | None:
        if not self.ready:
            return None
        if before is None:
            session.place = self.num_joined
            self.num_joined += 1
        elif before is not session:
            session.place = before.place
        return self.about | {"place": session.place, "position": list(Position())}

    def left(self, session: Session, why: str) -> None:
        self.gone.append(f"{session.name} {why}")

    def expect(self, session: Session, push: Push) -> None:
        pass

    def count(self, session: Session, push: Push, lateness: Lateness | None) -> None:
        self.pushes.append((session.name, lateness))

    @property
    def taus(self) -> list[int | None]:
        return [None if lateness is None else lateness.tau for _, lateness in self.pushes]


class World:
    """M servers in this thread."""

    def __init__(self, M: int = 1, optim: OptimConfig = OPTIM, **exchange: Any) -> None:
        self.config = ExchangeConfig(kind="async", **{"timeout_seconds": 0.3, **exchange})
        self.optim = optim
        self.warnings: list[str] = []
        tables, blocks = parameters()
        self.shards = [self._shard(i, M, tables, blocks) for i in range(M)]
        self.stewards = [Counting(i, M) for i in range(M)]
        self.doors = [InProcessDoor() for _ in range(M)]
        self.servers = [self.server(index) for index in range(M)]
        for door in self.doors:
            door.serve = self.serve

    def _shard(self, i: int, M: int, tables: Any, blocks: Any) -> Shard:
        optim = self.optim
        if M > 1:
            return sliced_shard(tables, blocks, i, M, optim, self.config)
        rows, dense = row_optimizer(tables.values(), optim), dense_optimizer(blocks.values(), optim)
        return Shard(tables, blocks, rows, dense, (optim.lr, optim.row_lr), self.config)

    def server(self, index: int) -> Server:
        """A server of this shard that knows nobody yet."""
        return Server(
            self.doors[index],
            self.shards[index],
            self.stewards[index],
            data="d" * 32,
            version="1",
            timeout_seconds=self.config.timeout_seconds,
            warn=self.warnings.append,
        )

    def serve(self) -> bool:
        """Let one server answer one message; whether there was one."""
        for door, server in zip(self.doors, self.servers, strict=True):
            if (arrived := door.receive(0.0)) is not None:
                server.handle(*arrived)
                return True
        return False

    def settle(self) -> None:
        """Let the servers answer all that has come."""
        while self.serve():
            pass

    def lines(self) -> list[Line]:
        return [door.line() for door in self.doors]

    def worker(self, name: str = "worker", **about: Any) -> Worker:
        return Worker(self, name, self.lines(), **about)

    def worker_with(
        self, sending: Mapping[int, Fate] | None = None, receiving: Mapping[int, Fate] | None = None
    ) -> Worker:
        """A worker whose line to the first server does not do as it is told; HELLO is message 0."""
        first, *others = self.lines()
        return Worker(self, "worker", [UnreliableLine(first, sending, receiving), *others])

    def values(self) -> dict[str, Tensor]:
        if len(self.shards) == 1:
            return {n: p.detach().clone() for n, p in self.shards[0].parameters.items()}
        return merged([parameters_of(shard) for shard in self.shards])

    @property
    def taus(self) -> list[int | None]:
        return self.stewards[0].taus


class Worker:
    """A worker that has joined, with a copy of the model that holds nothing yet."""

    def __init__(self, world: World, name: str, lines: list[Line], **about: Any) -> None:
        self.world = world
        self.servers = Servers(
            lines,
            name=name,
            timeout_seconds=world.config.timeout_seconds,
            **{"data": "d" * 32, "version": "1", **about},
        )
        nothing = float("nan")
        self.tables = {n: nn.Parameter(torch.full(s, nothing)) for n, s in TABLES.items()}
        self.blocks = {n: nn.Parameter(torch.full(s, nothing)) for n, s in BLOCKS.items()}
        self.join()

    def join(self) -> None:
        self.welcome = self.servers.join()
        config, clip = self.world.config, self.world.optim.clip
        self.client = Client(self.servers, self.tables, self.blocks, config, clip, seed=1)

    def fetch(self, step: int, *, everything: bool = False) -> None:
        self.rows = self.client.fetch(touched(step, everything=everything))
        backward(self.rows, self.blocks, step)

    def push(self, step: int) -> float:
        return self.client.push(self.rows, 1.0, 10, Position(0, step + 1, step + 1, 0.0))

    def step(self, step: int, *, everything: bool = False) -> None:
        self.fetch(step, everything=everything)
        self.push(step)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is not what these tests are about."""
    monkeypatch.setattr(servers_module, "LIFE_SECONDS", 0.02)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: Any) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **{"rtol": 0.0, "atol": 0.0, **tolerance})


def alone(steps: int = STEPS, optim: OptimConfig = OPTIM, **kwargs: Any) -> dict[str, Tensor]:
    reference = Alone(optim)
    for step in range(steps):
        reference.step(step, **kwargs)
    return reference.values()


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
    world.settle()
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
    world.settle()
    tolerance = {} if M == 1 else {"rtol": 1e-5, "atol": 1e-6}
    assert_same(world.values(), alone(everything=True), **tolerance)


def test_rows_pulled_ahead_are_pulled_again_where_they_have_changed() -> None:
    world = World()
    worker = world.worker()
    tasks = [touched(step) for step in range(5)]
    worker.client.pull_rows(tasks[0])
    for step in range(4):
        world.settle()  # the pull is answered before anything else happens
        if step > 0:
            worker.push(step - 1)
            world.settle()
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
    world.settle()
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
    world.settle()
    changed = (world.values()["body.weight"] != before).any(1)
    assert int(changed.sum()) == 3  # of 6 rows
    for step in range(1, 40):
        worker.step(step)
    world.settle()
    after = world.values()["body.weight"]
    assert after.isfinite().all()
    assert (after != before).all()


# What travels


def test_only_newer_rows_are_sent_again() -> None:
    world = World()
    a, b = world.worker("a"), world.worker("b")
    values = {}
    for worker in (a, b):
        worker.fetch(0)
        values[worker] = worker.servers.lines[0].meter.received
    a.client.fetch(touched(0))  # once more: nothing is newer
    received = a.servers.lines[0].meter.received - values[a]
    nothing = [(0, 4), (0, 4), (0,), (0, 3), (0,)]
    masked = [3, 5, 6, 6]
    assert received == rows_bytes(make_codec("fp32"), masked, nothing)

    b.fetch(1)
    b.push(1)
    world.settle()
    before = a.servers.lines[0].meter.received
    a.client.fetch(touched(0))
    rows = [set(touched(step).rows["embedding"].tolist()) for step in (0, 1)]
    words = [set(touched(step).rows["output.bias"].tolist()) for step in (0, 1)]
    newer, newer_words = len(rows[0] & rows[1]), len(words[0] & words[1])
    shapes = [(newer, 4), (newer_words, 4), (newer_words,), (6, 3), (6,)]
    received = a.servers.lines[0].meter.received - before
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
            world.settle()
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
        world.settle()
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
    world.settle()
    line = worker.servers.lines[0]
    before = line.meter.received
    worker.client.fetch(touched(1))  # without joining again
    some, blocks = [(3, 4), (5, 4), (5,)], list(BLOCKS.values())
    expected = rows_bytes(make_codec("bf16"), [3, 5, 6, 6], [*some, *blocks])
    assert line.meter.received - before == expected
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
    meters = [line.meter for line in worker.servers.lines]
    doors = [door.meter for door in world.doors]
    worker.step(0)
    world.settle()
    before = [(m.sent, m.received) for m in meters]
    worker.step(0)  # the same rows once more, all of which have changed
    world.settle()
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
        assert (doors[index].received, doors[index].sent) == (meter.sent, meter.received)


# Staleness


def test_staleness_is_what_happened_between_pull_and_push() -> None:
    world = World()
    a, b = world.worker("a"), world.worker("b")
    a.fetch(0)
    b.fetch(1)
    a.push(0)
    world.settle()
    a.step(2)
    world.settle()
    b.push(1)
    world.settle()
    assert [(name, lateness.tau) for name, lateness in world.stewards[0].pushes] == [
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
    world.settle()
    for step in range(1, 4):
        a.step(step)
    world.settle()
    before = world.values()
    b.push(0)
    world.settle()
    assert world.taus == [0, 0, 0, None]
    assert_same(world.values(), before)
    rows = b.client.fetch(ahead)
    assert b.client.too_old == 1
    for name, ids in ahead.rows.items():
        assert torch.equal(rows[name], before[name][ids])
    backward(rows, b.blocks, 9)
    b.rows = rows
    b.push(9)
    world.settle()
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
        world.settle()
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
    world.settle()
    assert_same(world.values(), last)
    world.shards[0].settle()
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
    world.settle()
    assert_same(world.values(), {n: first[n] - 0.1 * total[n] / 3 for n in first}, atol=1e-6)


# Faults of the wire


@pytest.mark.parametrize("fate", ["twice", "late", "spoilt", "lost"])
@pytest.mark.parametrize("direction", ["sending", "receiving"])
def test_faults_lose_a_step_at_most(fate: Fate, direction: str) -> None:
    """Every message of the first steps in turn; the run goes on, and no push counts twice."""
    for number in range(1, 8):
        world = World()
        worker = world.worker_with(**{direction: {number: fate}})
        done = 0
        while done < 8:
            try:
                worker.step(done)
                done += 1
            except Lost:
                worker.join()
        world.settle()
        assert 7 <= len(world.taus) <= 8
        for name, ids in touched(7).rows.items():
            assert worker.tables[name][ids].isfinite().all()
        assert len(world.warnings) <= 1


def test_what_was_lost_is_sent_again() -> None:
    """An answer that never arrives: the server must not believe that the worker holds its rows."""
    world = World()
    worker = world.worker_with(receiving={2: "lost"})
    with pytest.raises(Lost):
        for step in (0, 0):
            worker.fetch(step)
            worker.push(step)
    other = world.worker("other")
    other.step(0)
    world.settle()
    worker.client.fetch(touched(0))  # without joining again
    for name, ids in touched(0).rows.items():
        assert torch.equal(worker.tables[name][ids], world.values()[name][ids])


def test_numbers_count_once_in_any_order() -> None:
    numbers = Numbers()
    assert [numbers.first(n) for n in (1, 3, 2, 2, 3, 1, 5, 4)] == [
        True, True, True, False, False, False, True, True,
    ]  # fmt: skip
    assert numbers.first(10**9)
    assert not numbers.first(6)


GARBAGE = [
    b"",
    b"x",
    b"TWF1",
    b"TWF1" + bytes(100),
    bytes(16),
    b"TWF1\x02\0\0\0\xff\xff\xff\x7f\0\0\0\0",
    b"GET / HTTP/1.1\r\n\r\n",
]


def spoilt_messages() -> list[Tensor]:
    """What no worker says: bytes, kinds, numbers and JSON out of place."""
    found = [torch.tensor(list(data), dtype=torch.uint8) for data in GARBAGE]
    for kind in Kind:
        found += [say(kind), say(kind, text="{}"), say(kind, text="[1]"), say(kind, text="\0")]
        found += [say(kind, float("nan")), say(kind, -1.0, 2.5), say(kind, *[1.0] * 30)]
        found += [say(kind, *[float("inf")] * 40), say_json(kind, {"incarnation": "x"})]
    return found


def test_garbage_is_left_alone_with_one_warning() -> None:
    world = World()
    worker = world.worker()
    worker.step(0)
    stranger = world.doors[0].line()
    for message in spoilt_messages():
        stranger.send(message)
        world.settle()
    assert len(world.warnings) == 1
    worker.step(1)
    world.settle()
    assert_same(world.values(), alone(2))
    assert list(world.servers[0].sessions) == [worker.servers.incarnation]


def test_a_worker_that_speaks_wrongly_changes_nothing() -> None:
    """Messages of a worker's own, cut off or with a byte changed, anywhere."""
    world = World()
    worker = world.worker()
    sent: list[Tensor] = []
    line = worker.servers.lines[0]
    send = line.send
    line.send = lambda message: (sent.append(message), send(message))[1]
    worker.step(0)
    world.settle()
    line.send = send
    before = world.values()
    for message in sent:
        for length in range(0, len(message), 7):
            line.send(message[:length])
        for place in range(4, min(len(message), 300), 3):
            spoilt = message.clone()
            spoilt[place] ^= 128
            world.servers[0].handle(b"\0\0\0\0", spoilt)
    world.settle()
    assert all(value.isfinite().all() for value in before.values())
    assert len(world.warnings) == 1


# Joining and leaving


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"data": "e" * 32}, "fingerprint dddddddddddd, but that of new has eeeeeeeeeeee"),
        ({"version": "2"}, r"the server runs thinwire 1 \(protocol 2\) and new runs 2"),
    ],
)
def test_who_cannot_join_is_told_why(about: dict[str, str], sentence: str) -> None:
    world = World()
    with pytest.raises(UserError, match=sentence):
        world.worker("new", **about)
    assert not world.servers[0].sessions


def test_a_server_that_does_not_answer_is_named() -> None:
    world = World()
    world.stewards[0].ready = False
    with pytest.raises(
        UserError, match=r"the server in this process has not answered new for 0\.3"
    ):
        world.worker("new")


def test_servers_in_any_order_and_only_those_of_one_run() -> None:
    world = World(3)
    first, second, third = world.lines()
    worker = Worker(world, "worker", [third, first, second])
    for step in range(STEPS):
        worker.step(step)
    world.settle()
    assert_same(world.values(), alone(), rtol=1e-5, atol=1e-6)

    with pytest.raises(UserError, match="the run has 3 servers, and 2 are named"):
        Worker(world, "new", world.lines()[:2])
    with pytest.raises(UserError, match="are the same server of the run, the one with shard 1"):
        lines = world.lines()
        Worker(world, "new", [lines[0], lines[1], world.doors[1].line()])
    world.stewards[2].about["run"] = "b"
    with pytest.raises(UserError, match=r"serves the run a, and .* the run b"):
        Worker(world, "new", world.lines())


def test_a_server_that_was_started_again_does_not_know_its_workers() -> None:
    world = World()
    worker = world.worker()
    worker.step(0)
    world.settle()
    world.servers[0] = world.server(0)
    with pytest.raises(Lost):
        worker.step(1)
    worker.join()
    worker.step(1)
    world.settle()
    assert_same(world.values(), alone(2))


def test_a_silent_worker_loses_its_place_and_disturbs_nobody() -> None:
    world = World(timeout_seconds=5.0)
    server = world.servers[0]
    sleeper, other = world.worker("sleeper"), world.worker("other")
    sleeper.fetch(0)
    for second in range(8):
        server.tick(float(second))
        other.step(second)
        world.settle()
    assert world.stewards[0].gone == ["sleeper has been silent for 5 seconds"]
    before = world.values()
    sleeper.push(0)
    world.settle()
    assert_same(world.values(), before)
    with pytest.raises(Lost):
        sleeper.fetch(1)
    sleeper.join()
    sleeper.step(1)
    world.settle()
    assert world.taus[-1] == 0


def test_a_server_that_was_stopped_finds_nobody_silent() -> None:
    world = World(timeout_seconds=5.0)
    world.worker()
    world.servers[0].tick(0.0)
    world.servers[0].tick(1000.0)
    assert len(world.servers[0].sessions) == 1


def test_a_name_that_comes_again_takes_its_place_over() -> None:
    world = World()
    dead, other = world.worker("worker 0"), world.worker("worker 1")
    dead.fetch(0)
    replacement = world.worker("worker 0")
    assert replacement.welcome.place == dead.welcome.place != other.welcome.place
    dead.push(0)
    world.settle()
    assert world.taus == []
    with pytest.raises(Lost):
        dead.fetch(1)


def test_goodbye_brings_the_whole_account() -> None:
    world = World()
    worker = world.worker()
    for step in range(3):
        worker.step(step)
    line = worker.servers.lines[0]
    before = worker.servers.account()
    worker.servers.goodbye()
    world.settle()
    assert world.stewards[0].gone == ["worker has said goodbye"]
    assert world.servers[0].wire()[1:] == before[1:]
    assert line.meter.sent > before.bytes_sent
    assert world.servers[0].wire()[1:] == before[1:]  # and it is not counted twice


def test_who_waits_is_told_so_while_the_parameters_stand_still() -> None:
    world = World(timeout_seconds=5.0)
    server, worker = world.servers[0], world.worker()
    worker.fetch(0)
    server.tick(0.0)
    server.hold()
    before = world.values()
    assert not server.all_wait
    worker.push(0)
    ahead = touched(1)
    worker.client.pull_rows(ahead)
    world.settle()
    assert server.all_wait
    assert_same(world.values(), before)
    server.tick(1.0)
    message = worker.servers.arrived(0)
    assert message is not None and message[0] is Kind.WAIT
    server.release()
    worker.client.fetch(ahead)
    assert_same(world.values(), alone(1))


def test_who_has_pulled_ahead_computes_no_longer_than_to_its_push() -> None:
    world = World()
    server, worker = world.servers[0], world.worker()
    assert server.all_wait
    worker.fetch(0)
    worker.client.pull_rows(touched(1))
    world.settle()
    assert not server.all_wait
    worker.push(0)
    world.settle()
    assert server.all_wait


def test_the_end_is_told_to_everyone() -> None:
    world = World()
    worker = world.worker()
    worker.fetch(0)
    world.servers[0].stop("its budget is spent")
    worker.push(0)
    for action in (lambda: worker.fetch(1), worker.join, lambda: world.worker("new")):
        with pytest.raises(Stopped, match="its budget is spent"):
            action()
    assert world.taus == []
