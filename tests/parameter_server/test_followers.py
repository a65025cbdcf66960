"""Servers that follow: what they give and when, what is merged, and what a hand-over keeps.

M servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.exchange.config import ExchangeConfig
from thinwire.language_model import EMBEDDING
from thinwire.optim.config import OptimConfig
from thinwire.parameter_server.follower import Follower
from thinwire.parameter_server.followers import Followers
from thinwire.parameter_server.protocol import Kind, json_message, read_message
from thinwire.parameter_server.shard import Shard
from thinwire.parameter_server.sharding import (
    MODEL,
    cut,
    load_shard,
    merged,
    optimizers_of,
    parameters_of,
    sliced_shard,
)
from thinwire.runs.clock import Budget
from thinwire.runs.folder import RunFolder
from thinwire.runs.run import Run
from thinwire.transport.messages import InProcessListener

Settings = Callable[..., RunConfig]


# Merging


def shards(M: int, optim: OptimConfig, **exchange: Any) -> list[Shard]:
    generator = torch.Generator().manual_seed(3)
    tables = {"table": nn.Parameter(torch.randn(6, 4, generator=generator))}
    blocks = {"block": nn.Parameter(torch.randn(6, 3, generator=generator))}
    config = ExchangeConfig(kind="async", **{"accumulate": 1, **exchange})
    return [sliced_shard(tables, blocks, i, M, optim, config) for i in range(M)]


def held(shard: Shard) -> dict[str, Tensor]:
    return {f"{MODEL}{n}": t for n, t in parameters_of(shard).items()} | optimizers_of(shard)


def update(shard: Shard, row: int, value: float = 1.0) -> None:
    """An update of one row of the table, and of the block."""
    gradient = torch.full((1, 4), value)
    block = torch.full_like(shard.parameters["block"].detach(), value)
    shard._update({"table": (torch.tensor([row]), gradient), "block": (None, block)})


@pytest.mark.parametrize("rows", ["adam", "adaptahead"])
def test_ages_are_kept_where_servers_have_counted_otherwise(rows: str) -> None:
    """Server 0 has made 5 updates, server 1 has made 400; ages are those at their own server."""
    optim = OptimConfig(rows=rows, row_lr=0.01, lr=0.01)
    first, second = shards(2, optim)
    for _ in range(5):
        update(first, 0)
    update(second, 2)  # row 5 of the whole, 399 updates ago
    for _ in range(399):
        update(second, 1)  # row 3
    whole = merged([held(first), held(second)])
    ages = whole["rows.table/step"] - whole["rows.table/last_step"]
    # Rows 0, 2, 4 are the first server's, of which 0 was touched by every update.
    assert ages.tolist() == [0, 400, 5, 0, 5, 399]
    assert int(whole["rows.table/step"]) == 5


def test_a_row_moves_after_a_merge_as_it_would_have_without() -> None:
    """Rows with momentum 0 updates ago; read by the other clock they would be 395 updates old."""
    optim = OptimConfig(rows="adaptahead", row_lr=0.01, lr=0.01)
    first, second = shards(2, optim)
    for _ in range(5):
        update(first, 0)
    for _ in range(400):
        update(second, 1)
    whole = merged([held(first), held(second)])
    (alone,) = shards(1, optim)
    model = {n.removeprefix(MODEL): t for n, t in whole.items() if n.startswith(MODEL)}
    load_shard(alone, model, whole)
    before = parameters_of(alone)["table"].clone()
    own = parameters_of(second)["table"].clone()
    update(second, 1)
    alone._update({"table": (torch.tensor([3]), torch.ones(1, 4))})
    moved = parameters_of(alone)["table"][3] - before[3]
    torch.testing.assert_close(moved, parameters_of(second)["table"][1] - own[1])


def test_a_clock_of_any_name_is_rebased() -> None:
    """Whatever an optimiser remembers of a clock: here, a sum of decays."""
    slices = []
    for clock, last in ((2.0, [0.5, 2.0]), (10.0, [9.0, 4.0])):
        slices.append({
            "model/t": torch.zeros(2),
            "rows.t/decay": torch.tensor(clock),
            "rows.t/last_decay": torch.tensor(last),
            "rows.t/step": torch.tensor(int(clock)),
        })  # fmt: skip
    whole = merged(slices)
    assert float(whole["rows.t/decay"]) == 2.0
    # Since then 1.5, 0, and at the other server 1 and 6 have passed.
    assert whole["rows.t/last_decay"].tolist() == [0.5, 1.0, 2.0, -4.0]
    assert int(whole["rows.t/step"]) == 2


def test_rows_owe_after_a_merge_what_they_owed_before() -> None:
    """Server 0 has made 5 updates and server 1 40; each row pays for those it has missed."""
    optim = OptimConfig(rows="adamw", weight_decay=0.1, row_lr=0.1, lr=0.1)
    first, second = shards(2, optim)
    for _ in range(5):
        update(first, 0)
    update(second, 2)  # row 5 of the whole, which misses 39 updates
    for _ in range(39):
        update(second, 1)  # row 3
    whole = merged([held(first), held(second)])
    owed_V = (whole["rows.table/decay_sum"] - whole["rows.table/decay_paid"]).exp()
    expected = torch.tensor([1.0, 0.99**40, 0.99**5, 1.0, 0.99**5, 0.99**39])
    torch.testing.assert_close(owed_V.float(), expected, rtol=1e-5, atol=0.0)
    # A model that goes on with one server pays that, and one that is cut again owes as much.
    (alone,) = shards(1, optim)
    model = {n.removeprefix(MODEL): t for n, t in whole.items() if n.startswith(MODEL)}
    load_shard(alone, model, whole)
    alone.flush()
    paid = parameters_of(alone)["table"] / model["table"]
    torch.testing.assert_close(paid, expected[:, None].expand_as(paid), rtol=1e-5, atol=0.0)
    assert merged([cut(whole, 0, 2), cut(whole, 1, 2)]).keys() == whole.keys()
    for name, tensor in merged([cut(whole, 0, 2), cut(whole, 1, 2)]).items():
        assert torch.equal(tensor, whole[name])


def test_a_server_without_a_step_has_fresh_state() -> None:
    optim = OptimConfig(kind="adamw", rows="adam", row_lr=0.01, lr=0.01)
    first, second = shards(2, optim)
    for _ in range(3):
        update(first, 0)
    whole = merged([held(first), held(second)])
    average = whole["blocks.block/exp_avg"]
    assert average[0::2].abs().min() > 0 and not average[1::2].any()
    assert "blocks.block/none" not in whole and float(whole["blocks.block/step"]) == 0
    (alone,) = shards(1, optim)
    load_shard(alone, {"table": whole["model/table"], "block": whole["model/block"]}, whole)
    update(alone, 0)
    assert parameters_of(alone)["block"].isfinite().all()


def test_rows_that_are_given_drop_the_gradients_that_wait() -> None:
    (shard,) = shards(1, OptimConfig(rows="sgd", kind="sgd", lr=1.0, row_lr=1.0), accumulate=2)
    given = {n: torch.zeros_like(t) for n, t in parameters_of(shard).items()}
    shard._buffer.add({"table": (torch.tensor([0]), torch.ones(1, 4))})
    load_shard(shard, given, optimizers_of(shard))
    shard.flush()
    assert not any(tensor.any() for tensor in parameters_of(shard).values())


# A leader and a follower in one thread


class Pair:
    """The first of two servers, as far as it leads, and the other one."""

    def __init__(self, data: Path, out: Path, config: RunConfig) -> None:
        corpus = Corpus.open(data)
        self.config = config
        folder = RunFolder.planned(out, config, corpus)
        self.run = Run(folder, config, corpus, torch.device("cpu"), 1)
        self.corpus, self.warnings = corpus, list[str]()
        self.listener = InProcessListener()
        self.start()
        self.listener.serve = self.serve
        (own,) = self._shards([0])
        self.followers = Followers(
            [self.listener.connection()],
            self.run,
            own,
            "a run",
            asdict(config),
            self.warnings.append,
        )
        self.deaf = False

    def _shards(self, indices: list[int]) -> list[Shard]:
        run, optim = self.run, self.config.optim
        exchange = self.config.exchange.for_workers(1)
        return [sliced_shard(run.tables, run.blocks, i, 2, optim, exchange) for i in indices]

    def start(self) -> None:
        """The follower, or another process in its place: it holds nothing."""
        self.follower = Follower(
            self.corpus,
            self.config,
            1,
            2,
            lambda max_bytes: self.listener,
            self.warnings.append,
            torch.device("cpu"),
        )
        # What nobody has written may be anything.
        for parameter in self.follower.shard.parameters.values():
            parameter.data.fill_(1e31)

    def serve(self) -> bool:
        if self.deaf:
            return False
        return self.follower.turn(0.0)

    def expected(self, index: int) -> dict[str, Tensor]:
        tensors = {n: p.detach() for n, p in (*self.run.tables.items(), *self.run.blocks.items())}
        return cut(tensors, index, 2)


@pytest.fixture
def pair(
    toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pair]:
    for module in ("followers", "server"):
        monkeypatch.setattr(f"thinwire.parameter_server.{module}.ALIVE_SECONDS", 0.01)
    config = tiny(exchange={"kind": "async", "timeout_seconds": 0.5})
    yield Pair(toy_data, tmp_path / "run", config)


class Clock:
    """Each look at it takes a tenth of a second."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 0.1
        return self.seconds


def test_a_server_may_take_longer_to_start_than_to_answer(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("thinwire.parameter_server.followers.monotonic", clock)
    monkeypatch.setattr("thinwire.parameter_server.followers.POLL_SECONDS", 0.0)
    assert pair.config.exchange.timeout_seconds == 0.5
    pair.listener.serve = lambda: clock.seconds > 50.0 and pair.serve()
    pair.followers.wait_until_ready(lambda: False)
    assert pair.follower._ready


def test_a_server_that_never_comes_is_named(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinwire.parameter_server.followers.monotonic", Clock())
    monkeypatch.setattr("thinwire.parameter_server.followers.POLL_SECONDS", 0.0)
    pair.deaf = True
    with pytest.raises(UserError, match=r"has not answered for 60 seconds: is it running"):
        pair.followers.wait_until_ready(lambda: False)


def test_rows_that_nobody_has_written_are_not_given(pair: Pair) -> None:
    """Neither by a server that has just been started, nor to a run that it does not serve."""
    stranger = pair.listener.connection()
    stranger.send(json_message(Kind.COLLECT, {"request": 1, "optimizers": True, "run": "a run"}))
    pair.serve()
    assert stranger.receive(0.0) is None
    pair.followers.wait_until_ready(lambda: False)
    stranger.send(json_message(Kind.COLLECT, {"request": 1, "optimizers": True, "run": "another"}))
    pair.serve()
    assert stranger.receive(0.0) is None
    stranger.send(json_message(Kind.COLLECT, {"request": 1, "optimizers": True, "run": "a run"}))
    pair.serve()
    message = stranger.receive(0.0)
    assert message is not None and read_message(message)[0] is Kind.COLLECTED


def test_collecting_waits_for_a_server_that_is_started_again(pair: Pair) -> None:
    pair.followers.wait_until_ready(lambda: False)
    before = {n: p.detach().clone() for n, p in pair.run.tables.items()}
    pair.start()
    pair.followers.collect(optimizers=True)
    for name, tensor in pair.run.tables.items():
        assert torch.equal(tensor, before[name])
    assert len(pair.warnings) == 1 and "started again" in pair.warnings[0]
    assert pair.followers.connections[0].receive(0.0) is None


@pytest.mark.parametrize(
    ("budget", "given_back"),
    [({"tokens": 10_000}, 2_000), ({"epochs": 10.0}, 2_000), ({"seconds": 60.0}, 0)],
)
def test_a_budget_does_not_count_what_a_killed_server_has_lost(
    pair: Pair, budget: dict[str, float], given_back: int
) -> None:
    """One of two servers holds half of what was learned since it was last collected."""
    run, limits = pair.run, dict.fromkeys(("seconds", "tokens", "epochs")) | budget
    run.budget = Budget(replace(run.config.run, **limits))  # type: ignore[arg-type]
    pair.followers.wait_until_ready(lambda: False)
    tokens_an_epoch = len(pair.corpus.ids("train"))

    def train(num_tokens: int) -> None:
        run.advance(num_tokens, (run.tokens + num_tokens) / tokens_an_epoch)

    def spent() -> float:
        """In tokens."""
        (name,) = budget
        return run.progress() * budget[name] * {"tokens": 1, "epochs": tokens_an_epoch}.get(name, 0)

    def kill() -> None:
        num_warnings = len(pair.warnings)
        pair.start()
        while len(pair.warnings) == num_warnings or not all(pair.followers._ready):
            pair.followers.poll()
            pair.serve()

    train(1_000)
    pair.followers.collect(optimizers=False)
    assert run.lost_tokens == 0
    train(3_000)
    kill()
    assert run.lost_tokens == 1_500 and "the training of 1,500 tokens is lost" in pair.warnings[0]
    assert pair.warnings[0].endswith("and the run trains as many more") == bool(given_back)
    train(1_000)
    kill()  # it has had its rows again since, so only what came after is lost
    assert run.lost_tokens == 2_000
    assert spent() == pytest.approx((5_000 - 2_000) if given_back else 0, abs=1e-6)
    state = run.state()
    assert state["tokens"] == 5_000 and state["lost_tokens"] == 2_000


def test_a_run_that_is_over_makes_up_for_nothing(pair: Pair) -> None:
    pair.run.budget = Budget(replace(pair.run.config.run, seconds=None, tokens=1_000))
    pair.run.advance(1_000, 0.0)
    assert pair.run.over and not pair.run.lose(500)
    assert pair.run.over and pair.run.why_over == "tokens spent"


def test_a_request_that_is_lost_is_made_again(pair: Pair) -> None:
    pair.followers.wait_until_ready(lambda: False)
    connection, lost = pair.followers.connections[0], list[Kind]()
    send = connection.send

    def losing(message: Tensor) -> None:
        kind, _ = read_message(message)
        if kind is Kind.COLLECT and not lost:
            lost.append(kind)
            return
        send(message)

    connection.send = losing  # type: ignore[method-assign]
    with torch.no_grad():
        for parameter in pair.follower.shard.parameters.values():
            parameter.fill_(7.0)
    pair.followers.collect(optimizers=True)
    assert lost == [Kind.COLLECT]
    for tensor in pair.expected(1).values():
        assert (tensor == 7.0).all()


def test_collecting_from_a_silent_server_fails_and_changes_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the time in which one that was killed could have been started again."""
    pair.followers.wait_until_ready(lambda: False)
    monkeypatch.setattr("thinwire.parameter_server.followers.monotonic", Clock())
    monkeypatch.setattr("thinwire.parameter_server.followers.POLL_SECONDS", 0.0)
    before = {n: p.detach().clone() for n, p in pair.run.tables.items()}
    pair.deaf = True
    with pytest.raises(UserError, match="has not answered for 60 seconds, so step 0"):
        pair.followers.collect(optimizers=True)
    assert all(torch.equal(p, before[n]) for n, p in pair.run.tables.items())


def test_what_is_not_finite_is_not_collected(pair: Pair) -> None:
    pair.followers.wait_until_ready(lambda: False)
    with torch.no_grad():
        pair.follower.shard.parameters[EMBEDDING][3, 0] = float("inf")
    with pytest.raises(UserError, match=f"{EMBEDDING} is not finite at step 0"):
        pair.followers.collect(optimizers=False)
    assert all(p.isfinite().all() for p in pair.run.tables.values())


def test_what_is_not_finite_is_not_served(pair: Pair) -> None:
    with torch.no_grad():
        pair.run.tables[EMBEDDING][2, 0] = float("inf")
    with pytest.raises(UserError, match=f"cannot be served: {EMBEDDING} is not finite"):
        pair.followers.wait_until_ready(lambda: False)


def test_a_follower_that_is_asked_to_stop_hands_its_rows_over(pair: Pair) -> None:
    pair.followers.wait_until_ready(lambda: False)
    with torch.no_grad():
        pair.follower.shard.parameters[EMBEDDING].fill_(7.0)
    assert not pair.followers.handover_due
    pair.follower.stop_asked = True
    while not pair.followers.handover_due:
        pair.followers.poll()
        pair.serve()
    pair.followers.collect(optimizers=True)
    assert not pair.followers.handover_due
    pair.follower.run()  # it ends once it has heard that its rows have arrived
    assert (pair.expected(1)[EMBEDDING] == 7.0).all()
    pair.start()
    pair.followers.wait_until_ready(lambda: False)
    while not pair.follower._ready:
        pair.followers.poll()
        pair.serve()
    assert (pair.follower.shard.parameters[EMBEDDING] == 7.0).all()


def test_a_follower_without_a_leader_stops_at_once(pair: Pair) -> None:
    pair.follower.stop_asked = True
    pair.follower.run()
    assert not pair.follower.ended


def test_a_follower_that_nobody_collects_from_stops_after_a_while(pair: Pair) -> None:
    pair.followers.wait_until_ready(lambda: False)
    pair.follower.stop_asked = True
    pair.follower.run()
    assert not pair.follower._handed_over
