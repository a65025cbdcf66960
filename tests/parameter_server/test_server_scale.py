"""What a server saves is one worker's, whatever the number of workers.

W workers, of whose pushes a server applies the mean of k at once; D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.exchange.config import ExchangeConfig
from thinwire.optim.build import dense_optimizer, row_optimizer
from thinwire.optim.config import DenseKind, OptimConfig, RowKind
from thinwire.optim.state import load_named_state, named_state
from thinwire.optim.updater import Updater
from thinwire.parameter_server.leader import Leader
from thinwire.parameter_server.server_scale import at_one_worker, at_servers
from thinwire.parameter_server.shard import Shard
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.folder import resumed_folder
from thinwire.runs.run import Run
from thinwire.training.loop import Trainer, train
from thinwire.transport.messages import InProcessListener

from .test_leader import STEP_TOKENS, together

Settings = Callable[..., RunConfig]
W, D = 4, 8


class Model:
    """A table of six rows and a block, with one worker's optimisers."""

    def __init__(self, optim: OptimConfig) -> None:
        self.optim = optim
        self.table, self.block = nn.Parameter(torch.zeros(6, D)), nn.Parameter(torch.zeros(3, D))
        self.rows = row_optimizer([self.table], optim)
        self.dense = dense_optimizer([self.block], optim)
        for optimizer, rate in ((self.rows, optim.rates[1]), (self.dense, optim.rates[0])):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def update(self, ids: list[int], table: Tensor, block: Tensor) -> None:
        self.rows.update_rows(self.table, torch.tensor(ids), table)
        self.block.grad = block
        self.dense.step()

    def state(self) -> dict[str, Tensor]:
        found = {f"rows.{n}": t for n, t in named_state(self.rows, {self.table: "table"}).items()}
        found |= {f"blocks.{n}": t for n, t in named_state(self.dense, {self.block: "b"}).items()}
        return {name: tensor.clone() for name, tensor in found.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        parts = [
            {n.removeprefix(p): t for n, t in state.items() if n.startswith(p)}
            for p in ("rows.", "blocks.")
        ]
        load_named_state(self.rows, {self.table: "table"}, parts[0])
        load_named_state(self.dense, {self.block: "b"}, parts[1])


KINDS: list[dict[str, Any]] = [
    *({"rows": kind} for kind in get_args(RowKind)),
    *({"kind": kind} for kind in get_args(DenseKind)),
]


@pytest.mark.parametrize("updates", [4.0, 2.5, 0.25])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: " ".join([*kinds, *kinds.values()]))
def test_there_and_back_is_the_same(kinds: dict[str, Any], updates: float) -> None:
    """Row 0 is touched always, 1 seldom, 2 at the start only, and 3 never."""
    model, generator = Model(OptimConfig(**kinds)), torch.Generator().manual_seed(3)
    for step in range(12):
        ids = [0, 1, 2] if step == 0 else [0, 1] if step % 4 == 0 else [0]
        gradients = [torch.randn(n, D, generator=generator) for n in (len(ids), 3)]
        model.update(ids, *gradients)
    state = model.state()
    settled = at_one_worker(at_servers(state, model.optim, updates), model.optim, updates)
    assert settled.keys() == state.keys()
    # Once more: lazy averages have decayed by now.
    again = at_one_worker(at_servers(settled, model.optim, updates), model.optim, updates)
    for name, tensor in settled.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-7)
        if not name.startswith("rows.") or kinds.get("rows") not in ("adam", "adamw", "adaptahead"):
            torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=0.0)
    # Rows that the decay does not concern: those of the last update, and those never touched.
    for name, tensor in state.items():
        if tensor.ndim and len(tensor) == 6 and not name.endswith("last_step"):
            torch.testing.assert_close(settled[name][[0, 3]], tensor[[0, 3]], rtol=1e-3, atol=1e-6)
    model.load(again)


def test_numbers() -> None:
    """Four updates for one: W 4, k 1."""
    optim = OptimConfig(rows="adagrad", kind="adam")
    state = {
        "rows.t/sum": torch.tensor([1.0, 0.5]),
        "blocks.b/exp_avg": torch.tensor([3.0]),
        "blocks.b/exp_avg_sq": torch.tensor([2.0]),
        "blocks.b/step": torch.tensor(7.0),
        "blocks.c/none": torch.empty(0),
    }
    found = at_servers(state, optim, 4.0)
    assert {n: t.tolist() for n, t in found.items()} == {
        "rows.t/sum": [16.0, 8.0],
        "blocks.b/exp_avg": [3.0],
        "blocks.b/exp_avg_sq": [8.0],
        "blocks.b/step": 7.0,
        "blocks.c/none": [],
    }
    lazy = OptimConfig(rows="adaptahead", kind="adaptahead", rho=0.5, momentum=0.25)
    state = {
        "rows.t/step": torch.tensor(5),
        "rows.t/last_step": torch.tensor([5, 3], dtype=torch.int32),
        "rows.t/mean_square": torch.tensor([[1.0], [1.0]]),
        "rows.t/velocity": torch.tensor([[1.0], [1.0]]),
    }
    found = at_servers(state, lazy, 4.0)
    # Of the second row a quarter, and a 16th, is left.
    assert found["rows.t/mean_square"].tolist() == [[4.0], [1.0]]
    assert found["rows.t/velocity"].tolist() == [[0.5], [0.03125]]
    assert found["rows.t/last_step"].tolist() == [5, 5]


def test_numbers_of_lazy_adam() -> None:
    """Row 0 is touched by every update of one worker; row 1 by 15 of 16, so by half a server's."""
    optim = OptimConfig(rows="adam", beta1=0.5, beta2=0.5)
    state = {
        "rows.t/step": torch.tensor(1),
        "rows.t/last_step": torch.tensor([1, 1], dtype=torch.int32),
        "rows.t/mean": torch.tensor([[3.0], [3.0]]),
        "rows.t/mean_weight": torch.tensor([0.5, 0.5 * 15 / 16]),
        "rows.t/mean_square": torch.tensor([[2.0], [2.0]]),
        "rows.t/mean_square_weight": torch.tensor([0.5, 0.5 * 15 / 16]),
    }
    found = at_servers(state, optim, 4.0)
    for weight in ("mean_weight", "mean_square_weight"):
        torch.testing.assert_close(found[f"rows.t/{weight}"], torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(found["rows.t/mean"], torch.tensor([[3.0], [3.0 * 15 / 8]]))
    torch.testing.assert_close(found["rows.t/mean_square"], torch.tensor([[8.0], [8.0 * 15 / 8]]))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_a_server_piles_up_what_one_worker_does(kind: DenseKind, k: int) -> None:
    """Exact where gradients are pure noise: those of different workers are orthogonal.

    Row 0 is of all workers, row 1 + w of worker w alone.
    """
    optim = OptimConfig(kind=kind, rows="adagrad", initial_accumulator=1.0, lr=1e-3, row_lr=1e-3)
    one, servers = Model(optim), Model(optim)
    servers.load(at_servers(servers.state(), optim, W / k))
    table, block = servers.table, servers.block
    config = ExchangeConfig(kind="async", accumulate=k)
    shard = Shard(Updater({"t": table}, {"b": block}, servers.rows, servers.dense), config)
    generator = torch.Generator().manual_seed(5)
    for _ in range(20 if kind == "adagrad" else 1):
        gradients = torch.randn(W, D, generator=generator).sign() * torch.eye(W, D)
        for w in range(W):
            whole = torch.zeros(3, D)
            whole[0] = gradients[w]
            both = gradients[w].expand(2, D).contiguous()
            shard._buffer.add({"t": (torch.tensor([0, 1 + w]), both), "b": (None, whole)})
            if shard._buffer.size == k:
                shard._update(shard._buffer.take())
        mean = torch.zeros(3, D)
        mean[0] = gradients.mean(0)
        rows = torch.cat([gradients.mean(0, keepdim=True), gradients / W])
        one.update(list(range(1 + W)), rows, mean)
    found, expected = at_one_worker(servers.state(), optim, W / k), one.state()
    torch.testing.assert_close(found["rows.table/sum"], expected["rows.table/sum"])
    assert (expected["rows.table/sum"][:5] > 1.0).all()
    if kind == "adagrad":
        torch.testing.assert_close(found["blocks.b/sum"], expected["blocks.b/sum"])
        return
    # One round: of four updates the first have decayed by 0.999 a few times.
    unbiased = [
        state["blocks.b/exp_avg_sq"].sum() / (1 - optim.beta2 ** float(state["blocks.b/step"]))
        for state in (found, expected)
    ]
    torch.testing.assert_close(unbiased[0], unbiased[1], rtol=0.01, atol=0.0)


@pytest.mark.parametrize(
    ("kinds", "times"),
    [
        ({"kind": "adagrad", "rows": "adagrad"}, 1.0),
        ({"kind": "adagrad", "rows": "adagrad_full"}, 1.0),
        ({"kind": "adam", "rows": "adam"}, 2.0),
        ({"kind": "sgd", "rows": "sgd"}, 4.0),
    ],
)
def test_what_the_steps_of_a_round_come_to(kinds: dict[str, Any], times: float) -> None:
    """Late in a run, when no gradient changes what has piled up: r, sqrt(r), or as one worker."""
    optim = OptimConfig(**kinds, lr=0.1, row_lr=0.1)
    one, servers = Model(optim), Model(optim)
    values = {"sum": 1e6, "exp_avg_sq": 1e6, "exp_avg": 7.0, "step": 1000.0}
    values |= {"last_step": 1000.0, "mean": 7.0, "mean_square": 1e6}
    values |= {"mean_weight": 1.0, "mean_square_weight": 1.0 - optim.beta2**1000}
    one.update([0], torch.ones(1, D), torch.ones(3, D))
    late = {
        n: torch.full_like(t, values[n.rpartition("/")[2]])
        for n, t in one.state().items()
        if t.numel()
    }
    late = one.state() | late
    one.load(late)
    servers.load(at_servers(late, optim, W))
    before = one.table[0].detach().clone(), one.block.detach().clone()
    ones = torch.full((1, D), 7.0), torch.full((3, D), 7.0)
    for _ in range(W):
        servers.update([0], *ones)
    one.update([0], *ones)
    moved = (one.table[0] - before[0], servers.table[0]), (one.block - before[1], servers.block)
    for alone, together_ in moved:
        assert (alone < 0).all()
        torch.testing.assert_close(together_, times * alone, rtol=0.01, atol=0.0)


# Runs


def optimizer(run: Path) -> dict[str, Tensor]:
    return Checkpoints(run).load().open("optimizer")


def test_four_workers_save_what_one_does(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    """Between a quarter of one worker's, were there no noise in gradients, and as much.

    Unconverted it would be from 4 to 16 times as much.
    """
    sections: dict[str, Any] = {
        "run": {"tokens": 160 * STEP_TOKENS},
        "optim": {"kind": "adagrad", "lr": 0.002, "row_lr": 0.05, "initial_accumulator": 1e-6},
    }
    train(toy_data, tmp_path / "one", tiny(**sections, data={"batch": 16}))
    sections["run"] = sections["run"] | {"workers": 4}
    together(toy_data, tmp_path / "four", tiny(**sections), num_workers=4)
    one, four = optimizer(tmp_path / "one"), optimizer(tmp_path / "four")
    assert one.keys() == four.keys()
    for name in (n for n in one if n.endswith("/sum")):
        ratio = float((four[name] / one[name]).log().mean().exp())
        assert 0.2 < ratio < 2.0, (name, ratio)


def test_a_run_goes_on_in_sync_and_back(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    """A round's step of servers, and that of one worker, on the same gradients; loaded and saved
    again nothing has changed."""
    run = tmp_path / "run"
    settings: dict[str, Any] = {
        "optim": {"kind": "adagrad", "initial_accumulator": 1e4, "lr": 0.1, "row_lr": 0.1},
        "exchange": {"kind": "async", "accumulate": 2},
    }
    config = tiny(**settings, run={"tokens": 40 * STEP_TOKENS, "workers": W})
    together(toy_data, run, config, num_workers=W)
    saved, corpus, cpu = optimizer(run), Corpus.open(toy_data), torch.device("cpu")
    # What the sums began with is one worker's too: gradients are small beside it.
    for name in (n for n in saved if n.endswith("/sum")):
        torch.testing.assert_close(
            saved[name], torch.full_like(saved[name], 1e4), rtol=1e-3, atol=0
        )
    resumed = Run(resumed_folder(run, config, corpus), config, corpus, cpu, W)
    leader = Leader(resumed, InProcessListener(), saved=resumed.load().state)
    assert leader._optimizer_of_one_worker().keys() == saved.keys()
    for name, tensor in leader._optimizer_of_one_worker().items():
        torch.testing.assert_close(tensor, saved[name], rtol=1e-6, atol=0.0)
    alone = tiny(optim=settings["optim"], run={"tokens": 40 * STEP_TOKENS})
    trainer = Trainer(resumed_folder(run, alone, corpus), alone, corpus, cpu)
    trainer.restore(resume=True)
    for name, tensor in trainer.run.optimizer_state().items():
        assert torch.equal(tensor, saved[name])
    moved = []
    for owner, steps in ((leader.run, W // 2), (trainer.run, 1)):
        owner.set_rates(0.0)
        name = next(iter(owner.blocks))
        table, block = owner.tables["embedding.weight"], owner.blocks[name]
        before = table[2].detach().clone(), block.detach().clone()
        for _ in range(steps):
            updater = owner.updater
            updater.row_optimizer.update_rows(table, torch.tensor([2]), torch.ones_like(table[:1]))
            block.grad = torch.ones_like(block)
            updater.dense_optimizer.step()
        moved.append((table[2].detach() - before[0], block.detach() - before[1]))
    for servers, one in zip(*moved, strict=True):
        assert (one < 0).all()
        torch.testing.assert_close(servers, one, rtol=1e-2, atol=1e-6)
