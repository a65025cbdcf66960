"""A server and its workers in one process: the run is the trainer's, and its record is whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.errors import UserError
from thinwire.parameter_server.client import Client
from thinwire.parameter_server.connections import Lost, Welcome
from thinwire.parameter_server.followers import Followers
from thinwire.parameter_server.leader import Leader
from thinwire.parameter_server.protocol import Position
from thinwire.parameter_server.server import Server
from thinwire.parameter_server.worker import Failed, Worker
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.metrics import read_metrics
from thinwire.runs.run import Run
from thinwire.training.loop import train
from thinwire.transport.messages import Connection

from .together import Together, together

Settings = Callable[..., RunConfig]
STEP_TOKENS = 28
STEPS = 30


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that do not look ahead: every step sees the one before."""
    monkeypatch.setattr(Worker, "_look_ahead", Worker._touch)


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["event"] == event]


def model(run: Path) -> dict[str, Tensor]:
    return Checkpoints(run).load().open("model")


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"dropout": 0.3, "tied": True}, "optim": {"schedule": "cosine"}},
        {"loss": {"kind": "full"}, "exchange": {"kind": "async", "select": "everything"}},
        {"model": {"kind": "transformer"}, "data": {"context": "line"}},
        {"loss": {"kind": "adaptive"}, "model": {"width": 64}},
        {"model": {"ngrams": 3, "ngram_rows": 64}, "data": {"context": "line"}},
        {"model": {"kind": "transformer"}, "run": {"precision": "bf16"}},
    ],
    ids=["lstm", "tied", "everything", "lines", "adaptive", "n-grams", "bf16"],
)
def test_one_worker_is_the_trainer_bit_for_bit(
    sections: dict[str, Any], toy_data: Path, tmp_path: Path, tiny: Settings, plain: None
) -> None:
    run = {"tokens": STEPS * STEP_TOKENS, "threads": 1, **sections.get("run", {})}
    config = tiny(**{**sections, "run": run})
    train(toy_data, tmp_path / "trainer", config)
    together(toy_data, tmp_path / "served", config)
    expected = model(tmp_path / "trainer")
    for name, tensor in model(tmp_path / "served").items():
        assert torch.equal(tensor, expected[name]), name
    losses = [
        [line["loss"] for line in lines(tmp_path / run, "train")] for run in ("trainer", "served")
    ]
    assert losses[0] == losses[1]
    for run in ("trainer", "served"):
        assert [line["ppl"] for line in lines(tmp_path / run, "valid")] == [
            line["ppl"] for line in lines(tmp_path / "trainer", "valid")
        ]


@pytest.mark.parametrize("optim", [{}, {"kind": "adaptahead", "rows": "adam", "row_lr": 0.01}])
@pytest.mark.parametrize("ngrams", [0, 3])
def test_several_servers_are_one(
    optim: dict[str, Any], ngrams: int, toy_data: Path, tmp_path: Path, tiny: Settings, plain: None
) -> None:
    sections: dict[str, Any] = {
        "model": {"width": 16, "ngrams": ngrams, "ngram_rows": 64},
        "optim": {"lr": 0.002, "row_lr": 0.1, "schedule": "constant", **optim},
        "checkpoint": {"every_seconds": 0.0},
    }
    half = tiny(run={"tokens": STEPS // 2 * STEP_TOKENS}, **sections)
    full = tiny(run={"tokens": STEPS * STEP_TOKENS}, **sections)
    together(toy_data, tmp_path / "one", half)
    together(toy_data, tmp_path / "three", half, num_shards=3)
    together(toy_data, tmp_path / "one", full, resume=True)
    together(toy_data, tmp_path / "three", full, num_shards=2, resume=True)
    expected = model(tmp_path / "one")
    for name, tensor in model(tmp_path / "three").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_the_record_of_a_run(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    config = tiny(
        run={"tokens": 60 * STEP_TOKENS, "workers": 3},
        metrics={"every_steps": 10},
        eval={"every_tokens": 20 * STEP_TOKENS, "tokens": 200},
    )
    found = together(toy_data, tmp_path / "run", config, num_workers=3)
    assert found.why == ["its budget is spent"] * 3
    start, end = lines(tmp_path / "run", "start")[0], lines(tmp_path / "run", "end")[0]
    assert (start["workers"], end["reason"], end["step"]) == (3, "tokens spent", 60)
    assert len(lines(tmp_path / "run", "valid")) >= 3
    training = lines(tmp_path / "run", "train")
    assert sum(STEP_TOKENS for _ in range(60)) == end["tokens"] == training[-1]["tokens"]
    # The listeners have seen what the workers tell; their last goodbyes tell all but themselves.
    listener = found.listeners[0].meter
    for line in (*training, end):
        assert line["bytes_sent"] == line["bytes_received"] <= listener.sent + listener.received
        assert line["bytes_dense"] == 8 * start["parameters"] * line["step"]
        assert line["staleness"]["max"] >= line["staleness"]["mean"] >= 0
        assert line["exchange_seconds"] >= 0
    assert end["bytes_sent"] > training[-1]["bytes_dense"] / 100
    assert end["dropped_pushes"] == 0


def test_places_and_positions_survive_a_resume(
    toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    run = tmp_path / "run"
    config = tiny(run={"tokens": 20 * STEP_TOKENS, "workers": 2})
    together(toy_data, run, config, num_workers=2)
    saved = Checkpoints(run).load().state["batches"]
    positions = [Position(*found) for found in saved["places"].values()]
    assert sum(position.steps for position in positions) == 20
    more = tiny(run={"tokens": 30 * STEP_TOKENS, "workers": 2})
    together(toy_data, run, more, num_workers=2, resume=True)
    again = Checkpoints(run).load().state["batches"]["places"]
    assert sum(Position(*found).steps for found in again.values()) == 30
    assert all(again[place][2] >= saved["places"][place][2] for place in again)
    before, end = lines(run, "resume")[0], lines(run, "end")[-1]
    assert end["bytes_sent"] > before["bytes_sent"] > 0


def test_a_run_goes_on_with_another_number_of_workers(
    toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    run = tmp_path / "run"
    train(toy_data, run, tiny(run={"tokens": 20 * STEP_TOKENS}))
    more = tiny(run={"tokens": 30 * STEP_TOKENS, "workers": 2})
    together(toy_data, run, more, num_workers=2, resume=True)
    places = Checkpoints(run).load().state["batches"]["places"]
    # A half of the steps that one worker had made, of streams that are half as long.
    assert [Position(*found).epoch for found in places.values()] == [0, 0]
    assert sum(Position(*found).step for found in places.values()) == 2 * 10 + 10


def test_more_workers_than_planned(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    config = tiny(run={"tokens": 40 * STEP_TOKENS})
    together(toy_data, tmp_path / "run", config, num_workers=3)
    assert lines(tmp_path / "run", "end")[0]["reason"] == "tokens spent"


class Congested(Connection):
    """What is on its way arrives only a while after the end, and not at all from a shut listener.

    Args:
        inner: what messages come from in the end.
        ended: the server has said that the run has ended.
        shut: its listener is shut.
        free: how many messages arrive in time before the end.
    """

    def __init__(
        self, inner: Connection, ended: threading.Event, shut: threading.Event, free: float
    ) -> None:
        super().__init__(inner.server)
        self.inner, self.ended, self.shut, self.free = inner, ended, shut, free
        self.clear_at: float | None = None

    def send(self, message: Tensor) -> None:
        self.inner.send(message)

    def receive(self, timeout_seconds: float) -> Tensor | None:
        if self.ended.is_set() and self.clear_at is None:
            self.clear_at = monotonic() + 1.5
        held = self.free <= 0 if self.clear_at is None else monotonic() < self.clear_at
        if held or self.shut.is_set():
            sleep(min(timeout_seconds, 0.01))
            return None
        message = self.inner.receive(timeout_seconds)
        self.free -= message is not None
        return message

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize(("last", "free"), [(0, inf), (1, 2)], ids=["the only one", "the second"])
def test_who_hears_of_the_end_late_still_hears_of_it(
    last: int,
    free: float,
    toy_data: Path,
    tmp_path: Path,
    tiny: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over a slow link an answer of 100 MB takes a minute, and the end comes behind it."""
    ended, shut = threading.Event(), threading.Event()
    stop = Server.stop

    def stop_and_say(self: Server, why: str, *, failed: bool = False) -> None:
        stop(self, why, failed=failed)
        if self.listener is slow:
            ended.set()

    monkeypatch.setattr(Server, "stop", stop_and_say)
    monkeypatch.setattr("thinwire.parameter_server.serving_loop.PARTING_SECONDS", 0.1)
    config = tiny(run={"tokens": 20 * STEP_TOKENS}, exchange={"timeout_seconds": 6.0})
    found = Together(toy_data, tmp_path / "run", config, num_shards=1 + last)
    slow = found.listeners[last]
    monkeypatch.setattr(slow, "close", shut.set)
    # The last worker is the one that hears late; another, if there is one, trains to the end.
    found.connection = lambda name, connection, index: (
        Congested(connection, ended, shut, free)
        if (name, index) == (f"worker {last}", last)
        else connection
    )
    found.run(1 + last)
    assert found.errors == [] and shut.is_set()
    assert set(found.why) == {"its budget is spent"}


def test_a_loss_that_is_no_number_ends_the_run_for_all(
    toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    config = tiny(
        run={"tokens": 40 * STEP_TOKENS}, optim={"rows": "sgd", "row_lr": 1e30, "clip": 0.0}
    )
    found = Together(toy_data, tmp_path / "run", config)
    with pytest.raises(UserError, match="by worker 0, so training has stopped"):
        found.run(1)
    (error,) = found.errors
    assert isinstance(error, Failed) and "so training has stopped" in str(error)
    assert "so training has stopped" in lines(tmp_path / "run", "end")[0]["reason"]


def test_a_full_disk_is_said_and_training_goes_on(
    toy_data: Path,
    tmp_path: Path,
    tiny: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny(run={"tokens": 20 * STEP_TOKENS}, checkpoint={"every_seconds": 0.0})
    save = Leader._save_or_raise

    def full(self: Leader, *, best: bool) -> None:
        if 5 < self.run.step < 20:
            raise UserError("The disk is full: step 6 needs 1.0 MB")
        save(self, best=best)

    monkeypatch.setattr(Leader, "_save_or_raise", full)
    together(toy_data, tmp_path / "run", config)
    assert "Warning: The disk is full: step 6" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "run").newest == 20


def test_interrupted_it_saves(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    config = tiny(run={"tokens": 1000 * STEP_TOKENS})
    found = Together(toy_data, tmp_path / "run", config)
    done = Leader.push_done

    def stopping(self: Leader, *args: Any) -> None:
        done(self, *args)
        self.run.stop_asked = self.run.step == 10

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Leader, "push_done", stopping)
        found.run(1)
    assert found.why == ["it was interrupted"]
    assert Checkpoints(tmp_path / "run").newest == 10
    end = lines(tmp_path / "run", "end")[0]
    assert (end["reason"], end["step"]) == ("interrupted", 10)


def test_patience_ends_an_asynchronous_run(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    config = tiny(
        run={"tokens": 10**6},
        eval={"patience": 2, "every_tokens": 2 * STEP_TOKENS, "tokens": 100},
        optim={"rows": "sgd", "row_lr": 3.0, "clip": 0.0},
    )
    found = together(toy_data, tmp_path / "run", config)
    ppl = [line["ppl"] for line in lines(tmp_path / "run", "valid")]
    assert len(ppl) == ppl.index(min(ppl)) + 3  # two more without a new best
    (end,) = lines(tmp_path / "run", "end")
    assert end["reason"] == "no new best in 2 evaluations"
    assert "there was no new best in 2 evaluations" in found.why[0]


@pytest.mark.parametrize("resume", [False, True])
def test_the_clock_stands_still_until_the_first_step(
    resume: bool, toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the other servers are waited for, and the workers."""
    run = tmp_path / "run"
    if resume:
        together(toy_data, run, tiny(run={"tokens": 5 * STEP_TOKENS}))
    stood: list[float] = []
    wait_until_ready = Followers.wait_until_ready

    def slowly(self: Followers, stopping: Callable[[], bool]) -> None:
        clock = self.run.clock
        seconds, wall_seconds = clock.seconds, clock.wall_seconds
        while clock.wall_seconds < wall_seconds + 0.05:
            sleep(0.01)
        stood.append(clock.seconds - seconds)
        wait_until_ready(self, stopping)

    monkeypatch.setattr(Followers, "wait_until_ready", slowly)
    config = tiny(run={"tokens": 10 * STEP_TOKENS})
    together(toy_data, run, config, num_shards=2, resume=resume)
    assert stood == [0.0]


@pytest.mark.parametrize("what", ["collect", "save"])
def test_what_fails_at_the_end_is_not_passed_over(
    what: str, toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with the sentence, and the record says it; the workers end well."""
    run = tmp_path / "run"

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("it cannot be done")

    if what == "collect":
        monkeypatch.setattr(Followers, "collect", fail)
    else:
        monkeypatch.setattr(Checkpoints, "save", fail)
    found = Together(toy_data, run, tiny(run={"tokens": 10 * STEP_TOKENS}), num_shards=2)
    with pytest.raises(UserError, match="it cannot be done"):
        found.run(1)
    assert found.errors == [] and found.why == ["its budget is spent"]
    assert lines(run, "end")[0]["reason"] == "it cannot be done"


def test_an_evaluation_that_fails_at_the_end_does_not_keep_the_state_from_being_saved(
    toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Run) -> None:
        raise UserError("it cannot be measured")

    monkeypatch.setattr(Run, "measure", fail)
    found = Together(toy_data, tmp_path / "run", tiny(run={"tokens": 10 * STEP_TOKENS}))
    with pytest.raises(UserError, match="it cannot be measured"):
        found.run(1)
    assert Checkpoints(tmp_path / "run").newest == 10


def test_a_model_that_is_not_finite_is_not_saved(
    toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the only server; what was saved before is kept, and the run has failed."""
    run, done = tmp_path / "run", Leader.push_done
    names: list[str] = []

    def spoil(self: Leader, *args: Any) -> None:
        done(self, *args)
        name, block = next(iter(self.shard.blocks.items()))
        names.append(name)
        if self.run.step == 10:
            block.data.view(-1)[0] = inf

    monkeypatch.setattr(Leader, "push_done", spoil)
    sections = {"checkpoint": {"every_tokens": 5 * STEP_TOKENS}, "eval": {"every_tokens": 10**6}}
    found = Together(toy_data, run, tiny(run={"tokens": 10 * STEP_TOKENS}, **sections))
    with pytest.raises(UserError, match="is not finite at step 10, so it is neither"):
        found.run(1)
    assert found.errors == [] and 10 not in Checkpoints(run).steps
    assert 5 <= (Checkpoints(run).newest or 0) < 10
    assert f"{names[0]} is not finite at step 10" in lines(run, "end")[0]["reason"]


def test_one_push_that_is_no_number_does_not_end_the_run(
    toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = Client.push
    calls: list[int] = []

    def spoilt(self: Client, rows: Any, loss: float, *rest: Any) -> float:
        calls.append(1)
        return push(self, rows, float("nan") if len(calls) in (3, 4) else loss, *rest)

    monkeypatch.setattr(Client, "push", spoilt)
    together(toy_data, tmp_path / "run", tiny(run={"tokens": 10 * STEP_TOKENS}))
    end = lines(tmp_path / "run", "end")[0]
    assert (end["step"], end["dropped_pushes"], len(calls) >= 12) == (10, 2, True)


@pytest.mark.parametrize("same_run", [True, False])
def test_error_feedback_outlives_joining_again_but_not_another_server(
    same_run: bool, toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, in step 5, the worker is told that it is not known and joins again."""
    waiting: list[bool] = []
    begin, step, names = Worker._begin, Worker.step, list[str]()

    def begin_and_look(self: Worker, welcome: Welcome) -> None:
        if names and not same_run:
            welcome = replace(welcome, run="another")
        names.append(welcome.run)
        begin(self, welcome)
        waiting.append(any(bool(t.any()) for t in self.client._hidden.residuals.values()))

    def step_or_lose(self: Worker) -> None:
        if len(names) == 1 and self.steps == 5:
            raise Lost
        step(self)

    monkeypatch.setattr(Worker, "_begin", begin_and_look)
    monkeypatch.setattr(Worker, "step", step_or_lose)
    exchange = {"kind": "async", "hidden_fraction": 0.25}
    together(toy_data, tmp_path / "run", tiny(run={"tokens": 10 * STEP_TOKENS}, exchange=exchange))
    assert waiting == [False, same_run]


def test_a_checkpoint_holds_nothing_of_what_waits_at_the_workers(
    toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a resume every worker begins with nothing waiting, and trains on."""
    run, waiting = tmp_path / "run", list[tuple[bool, bool]]()
    begin, work_on = Worker._begin, Worker.run

    def wait(worker: Worker) -> bool:
        return any(bool(t.any()) for t in worker.client._hidden.residuals.values())

    def begin_and_look(self: Worker, welcome: Welcome) -> None:
        begin(self, welcome)
        self.began = wait(self)  # type: ignore[attr-defined]

    def run_and_look(self: Worker) -> str:
        try:
            return work_on(self)
        finally:
            waiting.append((self.began, wait(self)))  # type: ignore[attr-defined]

    monkeypatch.setattr(Worker, "_begin", begin_and_look)
    monkeypatch.setattr(Worker, "run", run_and_look)
    exchange = {"kind": "async", "hidden_fraction": 0.25}
    for steps in (10, 20):
        config = tiny(run={"tokens": steps * STEP_TOKENS}, exchange=exchange)
        together(toy_data, run, config, resume=steps == 20)
        assert Checkpoints(run).load().open("carry") == {}
    assert waiting == [(False, True), (False, True)]
    assert Checkpoints(run).newest == 20


@pytest.mark.parametrize("sections", [{"hidden_fraction": 0.25}, {"delay": 1}])
def test_servers_go_on_from_a_synchronous_run_without_what_it_held_back(
    sections: dict[str, Any], toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    run = tmp_path / "run"
    train(
        toy_data, run, tiny(run={"tokens": 10 * STEP_TOKENS}, exchange={"kind": "sync", **sections})
    )
    more = tiny(run={"tokens": 20 * STEP_TOKENS}, exchange={"kind": "async", **sections})
    together(toy_data, run, more, resume=True)
    assert Checkpoints(run).newest == 20
    assert not any(n.startswith("own.") for n in Checkpoints(run).load().open("carry"))
