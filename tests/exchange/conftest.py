"""A worker's steps, and small models whose gradients are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.data.prepare import prepare
from thinwire.exchange.config import ExchangeConfig
from thinwire.exchange.contract import Exchange
from thinwire.optim.rowwise import RowSGD
from thinwire.optim.updater import Updater
from thinwire.parameter_server import connections as connections_module
from thinwire.touched import Touched
from thinwire.training.loop import Trainer
from thinwire.training.replicas import check_replicas
from thinwire.transport.collective import Collective

torch.set_num_threads(1)


@dataclass
class Trained:
    """What a worker had after some steps: losses of each, parameters, bytes sent after each, what
    it announced, and the trainer itself."""

    losses: list[float]
    parameters: dict[str, Tensor]
    sent: list[int]
    announced: list[Touched]
    trainer: Trainer


@pytest.fixture
def trained() -> Callable[..., Trained]:
    """`trained(data, config, steps, member)`: a worker's first steps; alone without a member."""

    def run(data: Path, config: RunConfig, steps: int, member: Collective | None = None) -> Trained:
        trainer = Trainer(None, config, Corpus.open(data), torch.device("cpu"), member)
        found = Trained([], {}, [], [], trainer)
        announce = trainer.exchange.announce

        def listening(touched: Touched) -> None:
            found.announced.append(touched)
            announce(touched)

        trainer.exchange.announce = listening  # type: ignore[method-assign]
        with trainer.run.recording(resumed=False):
            for _ in range(steps):
                found.losses.append(trainer.train_step().loss)
                found.sent.append(trainer.collective.meter.sent)
            trainer.exchange.flush()
            parameters = {**trainer.run.tables, **trainer.run.blocks}
            check_replicas(trainer.collective, parameters)
        found.parameters = {name: p.detach().clone() for name, p in parameters.items()}
        return found

    return run


@pytest.fixture(scope="session")
def few_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 23 lines of unequal length, so that an epoch is soon over."""
    folder = tmp_path_factory.mktemp("few")
    words = [f"word{i}" for i in range(30)]
    lines = [" ".join(words[i : i + 1 + i * 7 % 11]) for i in range(23)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = folder / "data"
    prepare([str(folder / "text.txt")], out=data, valid=0, min_count=1, num_processes=1)
    return data


class Small:
    """An embedding, an output with biases, and two blocks, on one worker of several."""

    V, D = 12, 2

    def __init__(
        self,
        make: Callable[[Updater, Collective, ExchangeConfig, int], Exchange],
        member: Collective,
        lr: float = 1.0,
        dense: type[torch.optim.Optimizer] = torch.optim.SGD,
        **settings: Any,
    ) -> None:
        V, D = self.V, self.D
        self.tables = {
            "embedding": nn.Parameter(torch.arange(V * D).view(V, D) / 64),
            "weight": nn.Parameter(torch.ones(V, D)),
            "bias": nn.Parameter(torch.zeros(V)),
        }
        self.blocks = {
            "block": nn.Parameter(torch.arange(6 * D).view(6, D) / 32),
            "gain": nn.Parameter(torch.ones(3)),
        }
        rows = RowSGD(self.tables.values(), lr=lr)
        blocks = dense(self.blocks.values(), lr=lr)  # type: ignore[call-arg]
        self.updater = Updater(self.tables, self.blocks, rows, blocks, clip=0.0)
        self.member = member
        self.exchange = make(self.updater, member, ExchangeConfig(**settings), 1)

    def touched(self, inputs: list[int], shared: list[int], own: list[int]) -> Touched:
        """An output of shared rows and own ones, and an embedding."""
        ids = torch.tensor([*shared, *own], dtype=torch.int64)
        embedding = torch.tensor(inputs, dtype=torch.int64)
        rows = {"embedding": embedding, "weight": ids, "bias": ids}
        num_shared = {"weight": len(shared), "bias": len(shared)}
        return Touched(rows, num_shared, (("weight", "bias"),))

    def step(
        self, touched: Touched, scale: float = 1.0, meanwhile: Callable[[], None] = lambda: None
    ) -> float:
        """A step in which every touched number's gradient is `scale`."""
        rows = self.exchange.fetch(touched)
        total = sum(leaf.sum() for leaf in rows.values())
        total = total + sum(block.sum() for block in self.blocks.values())
        (total * scale).backward()
        self.exchange.push(touched, rows, self.blocks)
        meanwhile()
        return self.exchange.update()

    def parameters(self) -> dict[str, Tensor]:
        """All of them, as they are now."""
        return {n: p.detach().clone() for n, p in {**self.tables, **self.blocks}.items()}


@pytest.fixture
def small() -> type[Small]:
    """`small(Sync, member, codec="bf16", ...)`."""
    return Small


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a server that does not answer is not what these tests are about."""
    monkeypatch.setattr(connections_module, "ALIVE_SECONDS", 0.02)
