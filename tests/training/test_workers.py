"""Several workers: one record, one pace, one place to go on from."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.runs import clock as clock_module
from thinwire.runs import precision as precision_module
from thinwire.runs import step_folder
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.folder import RunFolder
from thinwire.runs.metrics import read_metrics
from thinwire.training.loop import Trainer, train
from thinwire.transport.collective import Collective
from thinwire.transport.faulty import Faulty

Settings = Callable[..., RunConfig]
Together = Callable[..., list[Any]]
STEP_TOKENS = 56  # of two workers


@pytest.fixture
def train_many(toy_data: Path, together: Together) -> Callable[..., None]:
    """`train_many(2, run, config, resume=...)`: a whole run of two workers that are threads."""

    def run(size: int, out: Path, config: RunConfig, *, resume: bool = False) -> None:
        config = replace(config, run=replace(config.run, workers=size))
        together(size, lambda m: train(toy_data, out, config, resume=resume, collective=m))

    return run


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["event"] == event]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run, "train")]


# A whole run


@pytest.mark.parametrize("kind", ["sync", "periodic"])
def test_the_record_follows_the_contract(
    kind: str, tmp_path: Path, tiny: Settings, train_many: Callable[..., None]
) -> None:
    config = tiny(
        run={"tokens": 6 * STEP_TOKENS},
        eval={"every_tokens": 2 * STEP_TOKENS},
        exchange={"kind": kind, "check_replicas": True, "local_steps": 2, "fragments": 2},
    )
    train_many(2, tmp_path / "run", config)
    found = read_metrics(tmp_path / "run")
    events = ["start", *["train", "train", "valid"] * 3, "end"]
    assert [line["event"] for line in found] == events
    assert found[0]["workers"] == 2
    wire = ["bytes_sent", "bytes_received", "bytes_dense", "exchange_seconds"]
    trained = lines(tmp_path / "run", "train")
    assert [line["step"] for line in trained] == list(range(1, 7))
    assert [line["tokens"] for line in trained] == [STEP_TOKENS * n for n in range(1, 7)]
    for before, after in pairwise(trained):
        assert all(0 <= before[name] <= after[name] for name in wire)
    end = found[-1]
    assert end["tokens"] == 6 * STEP_TOKENS and end["reason"] == "tokens spent"
    assert all(end[name] >= trained[-1][name] > 0 for name in wire)
    assert all(isinstance(end[name], int) for name in ("bytes_sent", "bytes_received"))
    assert Checkpoints(tmp_path / "run").newest == 6


def test_synchronous_workers_record_what_one_records(
    toy_data: Path, tmp_path: Path, tiny: Settings, train_many: Callable[..., None]
) -> None:
    run, eval_ = {"tokens": 8 * STEP_TOKENS}, {"every_tokens": 3 * STEP_TOKENS}
    train(toy_data, tmp_path / "one", tiny(run=run, eval=eval_, data={"batch": 8}))
    train_many(2, tmp_path / "two", tiny(run=run, eval=eval_))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    one, two = (
        [(line["step"], line["tokens"], line["tokens_scored"]) for line in lines(run, "valid")]
        for run in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two and len(one) == 3
    ppl = [[line["ppl"] for line in lines(tmp_path / run, "valid")] for run in ("one", "two")]
    assert ppl[0] == pytest.approx(ppl[1], rel=1e-3)


def test_two_workers_in_bf16_are_near_one_with_the_whole_batch(
    toy_data: Path, tmp_path: Path, tiny: Settings, train_many: Callable[..., None]
) -> None:
    run = {"tokens": 8 * STEP_TOKENS, "precision": "bf16"}
    train(toy_data, tmp_path / "one", tiny(run=run, data={"batch": 8}))
    train_many(2, tmp_path / "two", tiny(run=run))
    # Both round alike but for how the gradients of the two halves are added up.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-3)
    assert lines(tmp_path / "two", "start")[0]["precision"] == "bf16"


def test_all_take_the_precision_that_the_first_has_found(
    toy_data: Path,
    tmp_path: Path,
    tiny: Settings,
    train_many: Callable[..., None],
    monkeypatch: Any,
) -> None:
    """Only the first looks: a second look would find the opposite."""
    found = iter([2.0, 0.5])
    monkeypatch.setattr(precision_module, "has_bf16_units", lambda device: True)
    monkeypatch.setattr(precision_module, "speed_up", lambda config, device: next(found))
    monkeypatch.setattr(precision_module, "LEAST_WIDTH", 1)
    train_many(2, tmp_path / "run", tiny(run={"tokens": 2 * STEP_TOKENS, "precision": "auto"}))
    assert RunFolder.open(tmp_path / "run").config.run.precision == "bf16"
    assert lines(tmp_path / "run", "start")[0]["precision"] == "bf16"
    assert next(found) == 0.5
    # Resumed, nobody looks.
    longer = {"tokens": 4 * STEP_TOKENS, "precision": "auto"}
    train_many(2, tmp_path / "run", tiny(run=longer), resume=True)
    assert lines(tmp_path / "run", "start")[1]["precision"] == "bf16"


def test_the_bytes_of_a_run_are_those_of_all_workers(
    toy_data: Path, tmp_path: Path, tiny: Settings, together: Together
) -> None:
    config = tiny(run={"tokens": 5 * STEP_TOKENS, "workers": 2})

    def work(member: Collective) -> tuple[int, int]:
        train(toy_data, tmp_path / "run", config, collective=member)
        return member.meter.sent, member.meter.received

    counted = together(2, work)
    (end,) = lines(tmp_path / "run", "end")
    # After the last account there are an evaluation and a save: their sums, streams and hashes.
    for name, total in zip(
        ("bytes_sent", "bytes_received"), zip(*counted, strict=True), strict=True
    ):
        assert 0.8 * sum(total) < end[name] < sum(total)
    assert end["bytes_sent"] < end["bytes_dense"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_is_an_epoch_whatever_the_number_of_workers(
    size: int, toy_data: Path, tmp_path: Path, tiny: Settings, train_many: Callable[..., None]
) -> None:
    config = tiny(run={"epochs": 0.5}, data={"batch": 6, "length": 20})
    train_many(size, tmp_path / "run", config)
    (end,) = lines(tmp_path / "run", "end")
    tokens = Corpus.open(toy_data).meta.splits["train"].tokens
    assert end["tokens"] == pytest.approx(tokens / 2, rel=0.03)
    assert end["reason"] == "epochs spent"


def test_only_the_first_worker_writes(
    toy_data: Path, tmp_path: Path, tiny: Settings, together: Together
) -> None:
    config = tiny(run={"tokens": STEP_TOKENS, "workers": 2})

    def work(member: Collective) -> None:
        train(toy_data, tmp_path / f"run-{member.rank}", config, collective=member)

    together(2, work)
    assert [path.name for path in tmp_path.iterdir()] == ["run-0"]


# Going on

RESUMED: dict[str, dict[str, dict[str, Any]]] = {
    "fp32": {},
    "int8 of the largest": {
        "exchange": {"codec": "int8", "hidden_fraction": 0.4, "hidden_kind": "largest"}
    },
    "bf16 with feedback, tied": {
        "exchange": {"codec": "bf16", "hidden_fraction": 0.3},
        "model": {"tied": True, "dropout": 0.2},
        "optim": {"rows": "adam"},
    },
    "unbiased transformer": {
        "exchange": {"hidden_fraction": 0.3, "hidden_kind": "unbiased"},
        "model": {"kind": "transformer"},
    },
    "everything": {"exchange": {"select": "everything", "codec": "int8"}},
    "adaptive": {"loss": {"kind": "adaptive"}, "model": {"width": 64}},
    "lines": {"data": {"context": "line"}, "exchange": {"codec": "int8"}},
    # The state of the other workers' optimisers is not saved: here there is none.
    "periodic": {
        "exchange": {"kind": "periodic", "local_steps": 4, "fragments": 2, "codec": "int8"},
        "optim": {"kind": "sgd", "rows": "sgd", "lr": 0.1, "row_lr": 0.1},
    },
    "periodic with momentum": {
        "exchange": {
            "kind": "periodic",
            "local_steps": 3,
            "fragments": 3,
            "outer_momentum": 0.7,
            "outer_lr": 0.5,
        },
        "optim": {"kind": "sgd", "rows": "sgd", "lr": 0.1, "row_lr": 0.1},
    },
}


@pytest.mark.parametrize("sections", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    sections: dict[str, Any], tmp_path: Path, tiny: Settings, train_many: Callable[..., None]
) -> None:
    """To the bit: losses of each step, parameters, both optimisers, what each worker carries."""
    cut, steps = 8, 18

    def config(count: int) -> RunConfig:
        # Evaluating flushes a periodic run; the other evaluation is the one at the end.
        budget, at_the_cut = {"tokens": count * 56}, {"every_tokens": cut * 56}
        if "data" in sections:
            budget, at_the_cut = {"epochs": count / 300}, {}
        return tiny(**{**sections, "run": budget, "eval": at_the_cut})

    train_many(2, tmp_path / "straight", config(steps))
    train_many(2, tmp_path / "run", config(cut))
    before = len(losses(tmp_path / "run"))
    train_many(2, tmp_path / "run", config(steps), resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert before < len(losses(tmp_path / "straight"))
    (end,) = lines(tmp_path / "straight", "end")
    last = end["step"]
    assert Checkpoints(tmp_path / "run").newest == last
    for name in ("model", "optimizer", "carry"):
        file = f"step-{last}/{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()


def test_the_account_of_the_wire_goes_on(
    tmp_path: Path, tiny: Settings, train_many: Callable[..., None]
) -> None:
    out = tmp_path / "run"
    train_many(2, out, tiny(run={"tokens": 10 * STEP_TOKENS}))
    (first,) = lines(out, "end")
    train_many(2, out, tiny(run={"tokens": 20 * STEP_TOKENS}), resume=True)
    (end,) = lines(out, "end")
    for name in ("bytes_sent", "bytes_received", "bytes_dense"):
        assert 1.8 * first[name] < end[name] < 2.5 * first[name]
    assert end["bytes_dense"] == pytest.approx(2 * first["bytes_dense"], rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("sync", (2, 3)), ("sync", (3, 1)), ("sync", (1, 2)), ("periodic", (3, 2))],
    ids=str,
)
def test_another_number_of_workers_goes_on(
    kind: str,
    sizes: tuple[int, int],
    tmp_path: Path,
    tiny: Settings,
    train_many: Callable[..., None],
) -> None:
    """At the same part of the epoch, from the same parameters, with the same count of tokens."""
    before, after = sizes
    exchange: dict[str, Any] = {"kind": kind}
    exchange |= {"hidden_fraction": 0.5} if kind == "sync" else {"local_steps": 16, "fragments": 4}
    optim = {"lr": 0.01, "row_lr": 0.3}
    first = tiny(run={"epochs": 0.15}, exchange=exchange, optim=optim)
    train_many(before, tmp_path / "run", first)
    found = losses(tmp_path / "run")
    (end,) = lines(tmp_path / "run", "end")
    longer = tiny(run={"epochs": 0.2}, exchange=exchange, optim=optim)
    train_many(after, tmp_path / "run", longer, resume=True)
    more = lines(tmp_path / "run", "train")[len(found) :]
    # Periodic workers speak of their losses when they meet.
    first_steps = 1 if kind == "sync" else 4
    assert more[0]["step"] == end["step"] + first_steps
    assert more[0]["tokens"] == end["tokens"] + 28 * after * first_steps
    # A twentieth of an epoch more, of 15,635 tokens.
    assert more[-1]["tokens"] - end["tokens"] == pytest.approx(782, abs=28 * 4)
    begun = [line["loss"] for line in more[:5]]
    assert sum(begun) / len(begun) < found[0] - 0.5  # it has not begun anew


# What goes wrong


def test_a_worker_that_is_lost_is_recorded(
    toy_data: Path, tmp_path: Path, tiny: Settings, outcomes: Together, together: Together
) -> None:
    config = tiny(run={"tokens": 20 * STEP_TOKENS, "workers": 2}, checkpoint={"every_seconds": 0.0})

    def work(member: Collective, resume: bool = False, failing: int = 150) -> None:
        if member.rank == 1:
            member = Faulty(member, failing)
        train(toy_data, tmp_path / "run", config, resume=resume, collective=member)

    found = outcomes(2, work)
    assert all(isinstance(outcome, UserError) for outcome in found)
    (end,) = lines(tmp_path / "run", "end")
    assert "worker 1 of 2 has left" in end["reason"]
    saved = Checkpoints(tmp_path / "run").newest
    assert saved is not None and 0 < saved < 20
    together(2, lambda member: work(member, resume=True, failing=10**9))
    assert len(losses(tmp_path / "run")) == 20


@pytest.mark.parametrize("kind", ["sync", "periodic"])
def test_a_loss_that_is_not_a_number_ends_all(
    kind: str,
    toy_data: Path,
    tmp_path: Path,
    tiny: Settings,
    outcomes: Together,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute = LanguageModel.loss
    config = tiny(run={"tokens": 10**6, "workers": 2}, exchange={"kind": kind})
    here = threading.local()

    def loss(self: LanguageModel, *args: Any) -> Any:
        value, state = compute(self, *args)
        here.calls = getattr(here, "calls", 0) + 1
        return (value * float("nan") if here.calls == 4 and here.rank == 1 else value), state

    monkeypatch.setattr(LanguageModel, "loss", loss)

    def work(member: Collective) -> None:
        here.rank = member.rank
        train(toy_data, tmp_path / "run", config, collective=member)

    for found in outcomes(2, work):
        assert isinstance(found, UserError)
        assert "the loss is nan at step 4, so training has stopped" in str(found)
    (end,) = lines(tmp_path / "run", "end")
    assert (end["step"], end["tokens"]) == (3, 3 * STEP_TOKENS)


def test_an_interrupt_of_any_worker_ends_all_after_the_same_step(
    toy_data: Path,
    tmp_path: Path,
    tiny: Settings,
    outcomes: Together,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Trainer.train_step

    def interrupted(self: Trainer) -> Any:
        if self.collective.rank == 1 and self.run.step == 5:
            self.run.stop_asked = True
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    config = tiny(run={"tokens": 10**6, "workers": 2})
    work = lambda m: train(toy_data, tmp_path / "run", config, collective=m)  # noqa: E731
    assert all(isinstance(found, KeyboardInterrupt) for found in outcomes(2, work))
    (end,) = lines(tmp_path / "run", "end")
    assert (end["reason"], end["step"]) == ("interrupted", 6)
    assert Checkpoints(tmp_path / "run").newest == 6


def test_none_has_ended_well_where_the_last_save_fails(
    toy_data: Path,
    tmp_path: Path,
    tiny: Settings,
    outcomes: Together,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is written in the background; whoever restarts workers needs all of them."""
    save_tensors = step_folder.save_tensors

    def full(tensors: Any, file: Path) -> None:
        if "step-3.tmp" in file.parts:
            time.sleep(0.2)  # so that the others could leave
            raise OSError(errno.ENOSPC, "No space left on device")
        save_tensors(tensors, file)

    monkeypatch.setattr(step_folder, "save_tensors", full)
    config = tiny(run={"tokens": 3 * STEP_TOKENS, "workers": 2})
    work = lambda m: train(toy_data, tmp_path / "run", config, collective=m)  # noqa: E731
    one, other = outcomes(2, work)
    assert isinstance(one, UserError) and "The disk is full: step 3 needs" in str(one)
    assert isinstance(other, UserError)


def test_what_the_first_cannot_do_is_said_by_all(
    toy_data: Path, tmp_path: Path, tiny: Settings, outcomes: Together
) -> None:
    (tmp_path / "run").write_text("")
    config = tiny(run={"tokens": STEP_TOKENS, "workers": 2})
    work = lambda m: train(toy_data, tmp_path / "run", config, collective=m)  # noqa: E731
    one, other = outcomes(2, work, transport="gloo", timeout_seconds=5.0)
    assert "run is a file, and a run needs a folder" in str(one)
    assert isinstance(other, UserError) and str(one) in str(other)


# Nothing timed steers a budget in tokens


class Ticking:
    """A `perf_counter` that goes on by so many seconds each time it is read."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


@pytest.mark.parametrize(
    "sections",
    [
        {"exchange": {"kind": "periodic", "local_steps": 2, "fragments": 2}},
        {"exchange": {"kind": "sync", "delay": 1}},
        {
            "exchange": {"kind": "sync"},
            "eval": {"patience": 2},
            "optim": {"rows": "sgd", "row_lr": 3.0, "clip": 0.0},
        },
        {
            "exchange": {"kind": "sync"},
            "optim": {"schedule": "plateau", "plateau_patience": 0, "lr": 0.1, "row_lr": 1.0},
        },
    ],
    ids=["periodic", "delay", "patience", "plateau"],
)
def test_the_clock_steers_nothing_where_tokens_are_counted(
    sections: dict[str, Any],
    tmp_path: Path,
    tiny: Settings,
    train_many: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether evaluations and saves would be due at every step, or never."""
    for name, seconds in (("slow", 100.0), ("fast", 1e-9)):
        monkeypatch.setattr(clock_module, "perf_counter", Ticking(seconds))
        evaluations = {"every_seconds": 1.0, "tokens": 100} | sections.get("eval", {})
        config = tiny(
            **sections
            | {"run": {"tokens": 30 * STEP_TOKENS}, "eval": evaluations}
            | {"checkpoint": {"every_seconds": 1.0}}
        )
        train_many(2, tmp_path / name, config)
    assert losses(tmp_path / "slow") == losses(tmp_path / "fast")
    assert len(losses(tmp_path / "slow")) > 2


def test_a_periodic_run_that_is_killed_goes_on_to_the_bit(
    toy_data: Path, tmp_path: Path, tiny: Settings, outcomes: Together, together: Together
) -> None:
    """With the default optimisers, whose state differs from worker to worker meanwhile."""
    config = tiny(
        run={"tokens": 20 * STEP_TOKENS, "workers": 2},
        exchange={"kind": "periodic", "local_steps": 2, "fragments": 2},
        checkpoint={"every_tokens": 4 * STEP_TOKENS},
        optim={"initial_accumulator": 0.1},
    )

    def work(member: Collective, out: str, resume: bool, failing: int) -> None:
        if member.rank == 1:
            member = Faulty(member, failing)
        train(toy_data, tmp_path / out, config, resume=resume, collective=member)

    together(2, lambda m: work(m, "straight", False, 10**9))
    assert any(
        isinstance(found, UserError) for found in outcomes(2, lambda m: work(m, "run", False, 120))
    )
    saved = Checkpoints(tmp_path / "run").newest
    assert saved is not None and 0 < saved < 20
    together(2, lambda m: work(m, "run", True, 10**9))
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    for name in ("model", "optimizer"):
        files = [tmp_path / run / f"step-20/{name}.safetensors" for run in ("run", "straight")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("kind", ["sync", "periodic"])
def test_patience_ends_all_workers(
    kind: str, tmp_path: Path, tiny: Settings, train_many: Callable[..., None]
) -> None:
    config = tiny(
        run={"tokens": 10**6},
        eval={"patience": 2, "every_tokens": 2 * STEP_TOKENS, "tokens": 100},
        optim={"rows": "sgd", "row_lr": 3.0, "clip": 0.0},
        exchange={"kind": kind, "local_steps": 2, "fragments": 2},
    )
    train_many(2, tmp_path / "run", config)
    found = [line["ppl"] for line in lines(tmp_path / "run", "valid")]
    best = found.index(min(found))
    assert len(found) == best + 3  # two more without a new best
    (end,) = lines(tmp_path / "run", "end")
    assert end["reason"] == "no new best in 2 evaluations"
