"""Several workers: one record, one pace, one place to go on from."""

from __future__ import annotations

import errno
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.data.prepare import prepare
from thinwire.errors import UserError
from thinwire.exchange.coded import CodedCollective
from thinwire.exchange.contract import ExchangeState
from thinwire.language_model import LanguageModel
from thinwire.runs import checkpoints as checkpoints_module
from thinwire.runs import clock as clock_module
from thinwire.runs import precision as precision_module
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.folder import RunFolder
from thinwire.runs.metrics import read_metrics
from thinwire.runs.run import Run
from thinwire.train.barrier import keep_alive_barrier
from thinwire.train.loop import Trainer, train
from thinwire.train.replicas import (
    check_replicas,
    gathered_state,
    hand_out,
    introduce,
    scattered_state,
)
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective
from thinwire.transport.faulty import Faulty

Settings = Callable[..., RunConfig]
Together = Callable[..., list[Any]]
CPU = torch.device("cpu")
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


# Standing still


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_learn_what_the_first_has_found(size: int, together: Together) -> None:
    """Though it takes much longer than anybody waits for another."""

    def work(member: Collective) -> list[float]:
        exchange: Any = CodedCollective(member, "fp32", seed=0)
        found = []
        for number in (12.5, math.inf, 3.0):
            with keep_alive_barrier(exchange, member.rank == 0, patience_seconds=0.02) as result:
                if member.rank == 0:
                    sleep(0.6 if number == 12.5 else 0.0)
                    result.number = number
            found.append(result.number)
        return found

    assert together(size, work, timeout_seconds=0.3) == [[12.5, math.inf, 3.0]] * size


def test_a_failure_of_the_first_ends_the_others_wait(outcomes: Together) -> None:
    def work(member: Collective) -> None:
        exchange: Any = CodedCollective(member, "fp32", seed=0)
        with keep_alive_barrier(exchange, member.rank == 0, patience_seconds=0.02):
            if member.rank == 0:
                raise UserError("the disk is full")

    found = outcomes(2, work)
    assert str(found[0]) == "the disk is full"
    assert isinstance(found[1], UserError) and "worker 0 of 2" in str(found[1])
    assert not [thread for thread in threading.enumerate() if thread.name == "keep_alive_barrier"]


def test_a_worker_that_goes_meanwhile_is_named(outcomes: Together) -> None:
    """And no thread ends in a traceback, which pytest would tell."""

    def work(member: Collective) -> None:
        exchange: Any = CodedCollective(member, "fp32", seed=0)
        if member.rank == 1:
            return
        with keep_alive_barrier(exchange, True, patience_seconds=0.02):
            sleep(0.2)

    found = outcomes(2, work)
    assert isinstance(found[0], UserError) and "worker 1 of 2" in str(found[0])


# The same everywhere


def test_replicas_that_are_the_same_pass(together: Together) -> None:
    parameters = {"a": torch.randn(3, 4), "b": torch.tensor(2.0), "c": torch.empty(0, 3)}
    together(3, lambda member: check_replicas(member, parameters))
    check_replicas(Alone(), parameters)


@pytest.mark.parametrize("change", ["a bit", "a name"])
def test_a_replica_that_differs_is_named(change: str, outcomes: Together) -> None:
    def work(member: Collective) -> None:
        parameters = {"a": torch.ones(3, 4), "b": torch.zeros(2)}
        if member.rank == 2 and change == "a bit":
            parameters["b"][1] = 1e-45
        elif member.rank == 2:
            parameters = {"a": parameters["a"], "c": parameters["b"]}
        check_replicas(member, parameters)

    for found in outcomes(3, work):
        assert isinstance(found, UserError)
        assert "the replicas differ: worker 0 of 3 has parameters with hash " in str(found)
        assert "worker 2 of 3 " in str(found)


def test_workers_that_agree_are_introduced(
    toy_data: Path, tiny: Settings, together: Together
) -> None:
    """Threads and devices are each machine's own affair."""

    def work(member: Collective) -> None:
        device = "cpu" if member.rank else "auto"
        config = tiny(run={"threads": 1 + member.rank, "device": device, "workers": 2})
        introduce(member, config, Corpus.open(toy_data))

    together(2, work)
    introduce(Alone(), tiny(), Corpus.open(toy_data))


def alter(member: Any, old: str, new: str) -> None:
    """Have a worker say something else."""
    gather = member.all_gather

    def all_gather(message: Tensor) -> Any:
        text = bytes(message.tolist()).decode()
        assert old in text
        return gather(torch.tensor(list(text.replace(old, new).encode()), dtype=torch.uint8))

    member.all_gather = all_gather


@pytest.mark.parametrize("what", ["settings", "data folder", "thinwire"])
def test_a_worker_that_differs_is_refused(
    what: str, toy_data: Path, tmp_path: Path, tiny: Settings, outcomes: Together
) -> None:
    (tmp_path / "text.txt").write_text("a b c d e f g\n" * 999)
    prepare([str(tmp_path / "text.txt")], out=tmp_path / "other", num_processes=1)

    def work(member: Collective) -> None:
        other = member.rank == 1
        config = tiny(loss={"samples": 21}) if other and what == "settings" else tiny()
        data = tmp_path / "other" if other and what == "data folder" else toy_data
        if other and what == "thinwire":
            alter(member, f'"{__version__}"', '"9.9"')
        introduce(member, config, Corpus.open(data))

    for found in outcomes(2, work):
        assert isinstance(found, UserError)
        sentence = str(found)
        assert sentence.startswith(f"worker 1 of 2 cannot join: its {what} is ")
        assert "that of worker 0 of 2 is " in sentence


# Handing out


def test_what_the_first_has_loaded_is_handed_out(
    toy_data: Path, tiny: Settings, together: Together
) -> None:
    """Parameters, the state of both optimisers, counts, and what each worker gets its part of."""
    corpus, config = Corpus.open(toy_data), tiny(optim={"rows": "adam", "kind": "adamw"})

    def work(member: Collective) -> Any:
        other_seed = replace(config, run=replace(config.run, seed=1 + member.rank))
        run = Run(None, other_seed, corpus, CPU, member.size)
        state, carry = None, {}
        if member.rank == 0:
            generator = torch.Generator().manual_seed(0)
            for table in run.tables.values():
                ids = torch.tensor([3, 5])
                gradient = torch.randn(2, *table.shape[1:], generator=generator)
                run.updater.row_optimizer.update_rows(table, ids, gradient)
            for block in run.blocks.values():
                block.grad = torch.randn(block.shape, generator=generator)
            run.updater.dense_optimizer.step()
            run.step, run.tokens, run.best_ppl = 17, 1700, 88.5
            state = {**run.state(), "batches": {"epoch": 1, "step": 2}}
            carry = {"state.0": torch.arange(6.0).view(3, 2), "shared.none": torch.empty(0, 3)}
        state, carry = hand_out(member, run, state, carry)
        parameters = {n: p.detach().clone() for n, p in {**run.tables, **run.blocks}.items()}
        return state, carry, parameters, run.optimizer_state(), run.step, run.tokens, run.best_ppl

    first, *others = together(3, work)
    assert first[4:] == (17, 1700, 88.5)
    for other in others:
        assert other[0] == first[0] and other[4:] == first[4:]
        for mine, its in zip(first[1:4], other[1:4], strict=True):
            assert mine.keys() == its.keys()
            for name, tensor in mine.items():
                assert tensor.dtype == its[name].dtype and torch.equal(tensor, its[name]), name


def test_a_run_that_begins_has_nothing_to_hand_out(
    toy_data: Path, tiny: Settings, together: Together
) -> None:
    def work(member: Collective) -> Any:
        run = Run(None, tiny(), Corpus.open(toy_data), CPU, member.size)
        before = [p.detach().clone() for p in run.tables.values()]
        found = hand_out(member, run, None, {})
        assert all(map(torch.equal, before, run.tables.values()))
        return found

    assert together(2, work) == [(None, {})] * 2


def test_each_gets_back_what_it_gave(together: Together) -> None:
    def work(member: Collective) -> None:
        streams = [torch.full((2, 3), float(member.rank)), torch.full((2,), 10.0 + member.rank)]
        own = ExchangeState(
            shared={"m": torch.ones(4)}, own={"w": torch.full((2, 2), 1.0 + member.rank)}
        )
        saved = gathered_state(member, streams, own)
        assert saved["state.0"].shape == (6, 3) and saved["state.1"].shape == (6,)
        assert saved["own.w"].shape == (3, 2, 2) and saved["shared.m"].tolist() == [1.0] * 4
        found, state = scattered_state(member, saved, own)
        assert all(map(torch.equal, streams, found))
        assert torch.equal(state.own["w"], own.own["w"])
        assert torch.equal(state.shared["m"], own.shared["m"])

    together(3, work)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_was_on_its_way_is_not_lost_where_there_are_more_or_fewer(
    size: int, together: Together
) -> None:
    saved = {"own.w": torch.arange(12.0).view(3, 2, 2), "shared.m": torch.ones(1)}
    like = ExchangeState(own={"w": torch.zeros(2, 2), "new": torch.zeros(5)})

    def work(member: Collective) -> dict[str, Tensor]:
        streams, state = scattered_state(member, saved, like)
        assert not streams
        return dict(state.own)

    found = together(size, work)
    assert torch.equal(sum(own["w"] for own in found), saved["own.w"].sum(0))
    assert not any(own["new"].any() for own in found)


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
        if self.collective.rank == 1 and self.job.step == 5:
            self.job.stop_asked = True
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
    save_tensors = checkpoints_module.save_tensors

    def full(tensors: Any, file: Path) -> None:
        if "step-3.tmp" in file.parts:
            time.sleep(0.2)  # so that the others could leave
            raise OSError(errno.ENOSPC, "No space left on device")
        save_tensors(tensors, file)

    monkeypatch.setattr(checkpoints_module, "save_tensors", full)
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
