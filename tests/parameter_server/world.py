"""Servers and workers of the asynchronous exchange in one thread, and one worker without them.

D width, M servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thinwire.exchange.config import ExchangeConfig
from thinwire.exchange.local import Local
from thinwire.optim.build import dense_optimizer, row_optimizer
from thinwire.optim.config import OptimConfig
from thinwire.optim.updater import Updater
from thinwire.parameter_server.client import Client
from thinwire.parameter_server.connections import Servers
from thinwire.parameter_server.controller import Controller
from thinwire.parameter_server.protocol import Position, Push
from thinwire.parameter_server.server import Server
from thinwire.parameter_server.session import Session
from thinwire.parameter_server.shard import Shard, Unusable
from thinwire.parameter_server.sharding import merged, parameters_of, sliced_shard
from thinwire.parameter_server.staleness import Staleness
from thinwire.touched import Touched
from thinwire.transport.messages import Connection, Fault, InProcessListener, UnreliableConnection

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
    rows |= {"output.weight": words, "output.bias": words}
    return Touched(rows, alike=(("output.weight", "output.bias"),))


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
        self.exchange = Local(Updater(self.tables, self.blocks, rows, optimizer, optim.clip))

    def step(self, step: int, *, everything: bool = False) -> None:
        task = touched(step, everything=everything)
        rows = self.exchange.fetch(task)
        backward(rows, self.blocks, step)
        self.exchange.push(task, rows, self.blocks)
        self.exchange.update()

    def values(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in (*self.tables.items(), *self.blocks.items())}


class Counting(Controller):
    """Takes every worker, and writes down what happens."""

    def __init__(self, shard: int, num_shards: int) -> None:
        self.about = {"run": "a", "shard": shard, "num_shards": num_shards, "settings": {}}
        self.pushes: list[tuple[str, Staleness | None]] = []
        self.gone: list[str] = []
        self.refusals: list[str] = []
        self.ready = True
        self.num_joined = 0

    def welcome(self, session: Session, before: Session | None) -> dict[str, Any] | None:
        if not self.ready:
            return None
        if before is None:
            session.slot = self.num_joined
            self.num_joined += 1
        elif before is not session:
            session.slot = before.slot
        return self.about | {"slot": session.slot, "position": list(Position())}

    def on_leave(self, session: Session, why: str) -> None:
        self.gone.append(f"{session.name} {why}")

    def check_push(self, session: Session, push: Push) -> None:
        pass

    def push_refused(self, session: Session, why: Unusable) -> None:
        self.refusals.append(str(why))

    def push_done(self, session: Session, push: Push, staleness: Staleness | None) -> None:
        self.pushes.append((session.name, staleness))

    @property
    def taus(self) -> list[int | None]:
        return [None if staleness is None else staleness.tau for _, staleness in self.pushes]


class World:
    """M servers in this thread."""

    def __init__(self, M: int = 1, optim: OptimConfig = OPTIM, **exchange: Any) -> None:
        self.config = ExchangeConfig(kind="async", **{"timeout_seconds": 0.3, **exchange})
        self.optim = optim
        self.warnings: list[str] = []
        tables, blocks = parameters()
        self.shards = [self._shard(i, M, tables, blocks) for i in range(M)]
        self.stewards = [Counting(i, M) for i in range(M)]
        self.listeners = [InProcessListener() for _ in range(M)]
        self.servers = [self.server(index) for index in range(M)]
        for listener in self.listeners:
            listener.serve = self.serve

    def _shard(self, i: int, M: int, tables: Any, blocks: Any) -> Shard:
        optim = self.optim
        if M > 1:
            return sliced_shard(tables, blocks, i, M, optim, self.config)
        return Shard(Updater.of(tables, blocks, optim), self.config)

    def server(self, index: int) -> Server:
        """A server of this shard that knows nobody yet."""
        return Server(
            self.listeners[index],
            self.shards[index],
            self.stewards[index],
            data="d" * 32,
            version="1",
            timeout_seconds=self.config.timeout_seconds,
            warn=self.warnings.append,
        )

    def serve(self) -> bool:
        """Let one server answer one message; whether there was one."""
        for listener, server in zip(self.listeners, self.servers, strict=True):
            if (arrived := listener.receive(0.0)) is not None:
                server.handle(*arrived)
                return True
        return False

    def flush(self) -> None:
        """Let the servers answer all that has come."""
        while self.serve():
            pass

    def connections(self) -> list[Connection]:
        return [listener.connection() for listener in self.listeners]

    def worker(self, name: str = "worker", **about: Any) -> Worker:
        return Worker(self, name, self.connections(), **about)

    def worker_with(
        self,
        sending: Mapping[int, Fault] | None = None,
        receiving: Mapping[int, Fault] | None = None,
    ) -> Worker:
        """A worker whose connection to the first server is unreliable; HELLO is message 0."""
        first, *others = self.connections()
        return Worker(self, "worker", [UnreliableConnection(first, sending, receiving), *others])

    def values(self) -> dict[str, Tensor]:
        if len(self.shards) == 1:
            return {n: p.detach().clone() for n, p in self.shards[0].parameters.items()}
        return merged([parameters_of(shard) for shard in self.shards])

    @property
    def taus(self) -> list[int | None]:
        return self.stewards[0].taus


class Worker:
    """A worker that has joined, with a copy of the model that holds nothing yet."""

    def __init__(
        self, world: World, name: str, connections: list[Connection], **about: Any
    ) -> None:
        self.world = world
        self.servers = Servers(
            connections,
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


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: Any) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **{"rtol": 0.0, "atol": 0.0, **tolerance})


def alone(steps: int = STEPS, optim: OptimConfig = OPTIM, **kwargs: Any) -> dict[str, Tensor]:
    reference = Alone(optim)
    for step in range(steps):
        reference.step(step, **kwargs)
    return reference.values()
