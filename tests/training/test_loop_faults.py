"""What goes wrong in a run is said in a sentence, and what there was is kept."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from thinwire.config import RunConfig
from thinwire.data.prepare import prepare
from thinwire.errors import UserError
from thinwire.exchange.local import Local
from thinwire.language_model import LanguageModel
from thinwire.locks import one_writer
from thinwire.runs import step_folder
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.metrics import METRICS_FILE, read_metrics
from thinwire.training.loop import Trainer, train

Settings = Callable[..., RunConfig]
STEP_TOKENS = 28


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["event"] == event]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run, "train")]


def parameters(run: Path) -> dict[str, torch.Tensor]:
    return Checkpoints(run).load().open("model")


def fail_at(step: int, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Make the loss, or the gradient, not a number in the step after `step` steps."""
    if what == "loss":
        compute = LanguageModel.loss
        calls = iter(range(10**9))

        def loss(self: LanguageModel, *args: Any) -> Any:
            value, state = compute(self, *args)
            return (value * float("nan") if next(calls) == step else value), state

        monkeypatch.setattr(LanguageModel, "loss", loss)
    else:
        push, pushes = Local.push, iter(range(10**9))

        def poisoned(self: Local, touched: Any, rows: Any, blocks: Any) -> None:
            if next(pushes) == step:
                next(iter(rows.values())).grad.mul_(float("inf"))
            push(self, touched, rows, blocks)

        monkeypatch.setattr(Local, "push", poisoned)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_a_number_stops_at_the_last_good_state(
    what: str, toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    config = tiny(run={"tokens": 12 * STEP_TOKENS}, checkpoint={"every_seconds": 0.0})
    train(toy_data, tmp_path / "straight", config)
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        fail_at(8, patch, what)
        with pytest.raises(UserError) as caught:
            train(toy_data, run, config)
    sentence = str(caught.value)
    assert what in sentence and "at step 9, so training has stopped" in sentence
    assert "the newest state saved is step 8" in sentence and "--optim.lr (now 0.002)" in sentence
    (end,) = lines(run, "end")
    assert (end["reason"], end["step"], end["tokens"]) == (sentence, 8, 8 * STEP_TOKENS)
    assert Checkpoints(run).newest == 8
    assert all(p.isfinite().all() for p in parameters(run).values())
    train(toy_data, run, config, resume=True)
    assert losses(run) == losses(tmp_path / "straight")
    assert [end["reason"] for end in lines(run, "end")] == ["tokens spent"]


def test_a_loss_that_explodes_stops_the_run(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    config = tiny(run={"tokens": 10**6}, optim={"rows": "sgd", "row_lr": 1e6, "clip": 0.0})
    with pytest.raises(UserError, match=r"loss has risen from .* no step had been saved yet"):
        train(toy_data, tmp_path / "run", config)
    assert lines(tmp_path / "run", "end")[0]["reason"].startswith("the loss has risen")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_an_interrupt_saves_and_a_second_one_does_not_wait(
    number: signal.Signals,
    toy_data: Path,
    tmp_path: Path,
    tiny: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Trainer.train_step

    def interrupted(self: Trainer) -> Any:
        if self.run.step == 5:
            signal.raise_signal(number)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(toy_data, tmp_path / "run", tiny(run={"tokens": 10**6}))
    (end,) = lines(tmp_path / "run", "end")
    assert (end["reason"], end["step"]) == ("interrupted", 6)
    assert Checkpoints(tmp_path / "run").newest == 6
    assert signal.getsignal(number) is before

    def impatient(self: Trainer) -> Any:
        signal.raise_signal(number)
        signal.raise_signal(number)
        raise AssertionError("not reached")

    monkeypatch.setattr(Trainer, "train_step", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(toy_data, tmp_path / "two", tiny(run={"tokens": 10**6}))
    assert Checkpoints(tmp_path / "two").newest is None


@pytest.mark.parametrize("at", [3, 6], ids=["amid the run", "at its end"])
def test_a_full_disk_is_said_once_and_loses_nothing(
    at: int, toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes in the thread that writes in the background."""
    write = step_folder.save_tensors

    def full(tensors: Any, file: Path) -> None:
        if f"step-{at}.tmp" in file.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, file)

    config = tiny(run={"tokens": 6 * STEP_TOKENS}, checkpoint={"every_seconds": 0.0})
    monkeypatch.setattr(step_folder, "save_tensors", full)
    with pytest.raises(UserError, match=f"The disk is full: step {at} needs"):
        train(toy_data, tmp_path / "run", config)
    (end,) = lines(tmp_path / "run", "end")
    assert end["reason"].startswith("The disk is full")
    assert Checkpoints(tmp_path / "run").load().step == at - 1


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"data": {"batch": 5000}}, r"15,635 tokens, too few for one step of 5000 sequences"),
        ({"loss": {"kind": "adaptive"}}, "model.width must be at least 64, and is 16"),
        ({"run": {"device": "mps", "tokens": 1}}, "--device mps was asked for"),
    ],
)
def test_settings_that_do_not_fit_leave_no_run_behind(
    sections: dict[str, Any], sentence: str, toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(toy_data, tmp_path / "run", tiny(**sections))
    assert not (tmp_path / "run").exists()


def test_without_validation_text_nothing_starts(tmp_path: Path, tiny: Settings) -> None:
    (tmp_path / "text.txt").write_text("a b c d e f g\n" * 99)
    data = tmp_path / "data"
    prepare([str(tmp_path / "text.txt")], out=data, valid=0, min_count=1, num_processes=1)
    with pytest.raises(UserError, match=r"data has no validation text: prepare it again with"):
        train(data, tmp_path / "run", tiny(run={"tokens": 1}))
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    train(toy_data, tmp_path / "run", tiny(run={"tokens": 1}))
    before = (tmp_path / "run" / METRICS_FILE).read_bytes()
    with pytest.raises(UserError, match="already holds a run: go on with --resume"):
        train(toy_data, tmp_path / "run", tiny(run={"tokens": 1}))
    assert (tmp_path / "run" / METRICS_FILE).read_bytes() == before


def test_a_run_folder_has_one_writer(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    config = tiny(run={"tokens": 1})
    with (
        one_writer(tmp_path / "run"),
        pytest.raises(UserError, match="one writer at a time"),
    ):
        train(toy_data, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    train(toy_data, tmp_path / "run", config)
    with (
        one_writer(tmp_path / "run"),
        pytest.raises(UserError, match="one writer at a time"),
    ):
        train(toy_data, tmp_path / "run", config, resume=True)


def test_a_name_that_is_not_utf8_is_refused(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    real = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(toy_data, real)
    with pytest.raises(UserError, match=r"is not UTF-8, and config\.toml, which is"):
        train(real, tmp_path / "run", tiny(run={"tokens": 1}))
    assert not (tmp_path / "run").exists()
