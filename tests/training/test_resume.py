"""A resumed run is the run that was never stopped, bit for bit."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from thinwire.cli.app import main
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.data.prepare import prepare
from thinwire.errors import UserError
from thinwire.runs import step_folder
from thinwire.runs.folder import CONFIG_FILE, RunFolder
from thinwire.runs.metrics import read_metrics
from thinwire.runs.run import Run
from thinwire.training.loop import Trainer, train

Settings = Callable[..., RunConfig]
STEP_TOKENS = 28
STEPS, CUT = 50, 20
CPU = torch.device("cpu")

# The command line, in a process that signals itself amid the step after step CUT.
STOPPED = f"""
import os, signal, sys
from thinwire.cli.app import main
from thinwire.exchange.local import Local
push, left = Local.push, [{CUT}]
def stopped(self, touched, rows, blocks):
    if not left[0]:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    left[0] -= 1
    return push(self, touched, rows, blocks)
Local.push = stopped
sys.exit(main(sys.argv[2:]))
"""


def call(*args: object, stop: str | None = None, code: int = 0) -> str:
    """Run `thinwire ARG...`, stopped by a signal or not; what it says on standard error."""
    start = ["-m", "thinwire"] if stop is None else ["-c", STOPPED, stop]
    command = [sys.executable, *start, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    return done.stderr


def here(*args: object) -> None:
    """The same command line in this process, which is quicker."""
    assert main([str(arg) for arg in args]) == 0


def losses(run: Path) -> dict[int, float]:
    found = [line for line in read_metrics(run) if line["event"] == "train"]
    by_step = {line["step"]: line["loss"] for line in found}
    assert len(by_step) == len(found)  # no step counts twice
    return by_step


def assert_same(run: Path, straight: Path, steps: int = STEPS) -> None:
    """Step by step the same losses, and in the end the same bytes."""
    assert losses(run) == losses(straight)
    assert list(losses(run)) == list(range(1, steps + 1))
    for name in ("model", "optimizer", "carry"):
        mine, other = (r / f"step-{steps}" / f"{name}.safetensors" for r in (run, straight))
        assert mine.read_bytes() == other.read_bytes(), name


# Through the command line, in processes

SMALL = (
    "--threads 1 --model.width 16 --model.heads 2 --loss.samples 20 --data.batch 4 --data.length 7 "
    f"--metrics.every_steps 1 --tokens {STEPS * STEP_TOKENS}"
).split()


@pytest.mark.parametrize(
    "model",
    [
        "--model.kind lstm --model.layers 2 --model.dropout 0.3",
        "--model.kind lstm --model.tied --optim.kind adamw --optim.rows adam",
        "--model.kind transformer --model.dropout 0.1",
        "--model.ngrams 3 --model.ngram_rows 99 --optim.rows adam --model.dropout 0.2",
    ],
    ids=["lstm", "tied lstm", "transformer", "n-grams"],
)
def test_killed_and_resumed_equals_straight(model: str, toy_data: Path, tmp_path: Path) -> None:
    settings = [*SMALL, *model.split(), "--checkpoint.every_seconds", 0]
    straight, run = tmp_path / "straight", tmp_path / "run"
    here("train", toy_data, "--out", straight, *settings)
    call("train", toy_data, "--out", run, *settings, stop="SIGKILL", code=-9)
    assert max(losses(run)) == CUT and not (run / f"step-{STEPS}").exists()
    # Its own settings are in the run folder.
    said = call("train", toy_data, "--out", run, "--resume")
    assert f"Going on from step {CUT}, in " in said or f"Going on from step {CUT - 1}, in " in said
    assert_same(run, straight)


def test_interrupted_and_resumed_equals_straight(toy_data: Path, tmp_path: Path) -> None:
    """Ctrl+C saves, whatever the interval; and so does what a scheduler sends."""
    straight = tmp_path / "straight"
    here("train", toy_data, "--out", straight, *SMALL)
    for name in ("SIGINT", "SIGTERM"):
        run = tmp_path / name
        said = call("train", toy_data, "--out", run, *SMALL, stop=name, code=130)
        assert "interrupted" in said
        end = read_metrics(run)[-1]
        assert (end["event"], end["reason"], end["step"]) == ("end", "interrupted", CUT + 1)
        here("train", toy_data, "--out", run, "--resume")
        assert_same(run, straight)


# The same inside this process, in more ways


class Killed(BaseException):
    """Nothing that the loop may handle."""


def killed(data: Path, run: Path, config: RunConfig, at: int = CUT) -> None:
    """Train until the process would have been killed."""
    step = Trainer.train_step

    def stopped(self: Trainer) -> Any:
        if self.run.step == at:
            raise Killed
        return step(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "train_step", stopped)
        train(data, run, config)
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def steps(count: int) -> dict[str, Any]:
    return {"tokens": count * STEP_TOKENS}


EACH = {"every_seconds": 0.0}


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"kind": "full"}, "optim": {"kind": "sgd", "rows": "sgd"}},
        {"loss": {"kind": "nce"}, "optim": {"kind": "adagrad", "rows": "adagrad_full"}},
        {"loss": {"kind": "adaptive"}, "model": {"width": 64}},
        {"run": steps(STEPS) | {"precision": "bf16"}, "model": {"dropout": 0.2}},
        {"optim": {"kind": "adaptahead", "rows": "adaptahead", "row_lr": 0.01}},
        {"optim": {"kind": "adamw", "rows": "adamw", "weight_decay": 0.1}},
        {"model": {"kind": "causal_conv", "layers": 2, "dropout": 0.2, "window": 9}},
        {"optim": {"schedule": "cosine", "warmup_steps": 30}},
        {
            "optim": {"schedule": "plateau", "plateau_patience": 0, "lr": 0.1, "row_lr": 1.0},
            "eval": {"every_tokens": STEP_TOKENS, "tokens": 200},
        },
    ],
    ids=[
        "full-sgd",
        "nce-adagrad",
        "adaptive",
        "bf16",
        "adaptahead",
        "adamw",
        "causal_conv",
        "cosine",
        "plateau",
    ],
)
def test_every_part_resumes(
    sections: dict[str, Any], toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    config = tiny(**{"run": steps(STEPS), "checkpoint": EACH, **sections})
    train(toy_data, tmp_path / "straight", config)
    killed(toy_data, tmp_path / "run", config)
    train(toy_data, tmp_path / "run", config, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")
    rates = [line["lr"] for line in read_metrics(tmp_path / "run") if "lr" in line]
    assert (rates[0] != rates[CUT - 1]) == (config.optim.schedule != "constant")


@pytest.mark.parametrize("context", ["text", "line"])
def test_resumes_over_the_end_of_an_epoch(
    context: str, toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    config = tiny(
        run={"epochs": 2.5}, data={"batch": 64, "length": 35, "context": context}, checkpoint=EACH
    )
    train(toy_data, tmp_path / "straight", config)
    last = max(losses(tmp_path / "straight"))
    for at in range(5, last, 25):
        run = tmp_path / str(at)
        killed(toy_data, run, config, at)
        train(toy_data, run, config, resume=True)
        assert_same(run, tmp_path / "straight", last)


def test_a_run_killed_before_its_first_save_starts_again(
    toy_data: Path, tmp_path: Path, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(run=steps(STEPS))
    train(toy_data, tmp_path / "straight", config)
    killed(toy_data, tmp_path / "run", config)
    train(toy_data, tmp_path / "run", config, resume=True)
    assert "Going on from the start, as no step was saved" in capsys.readouterr().err
    assert_same(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("budget", [steps(STEPS), {"epochs": 0.0895}], ids=["tokens", "epochs"])
def test_a_budget_may_grow(
    budget: dict[str, Any], toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    train(toy_data, tmp_path / "straight", tiny(run=budget))
    (name, amount), *_ = budget.items()
    half = {name: type(amount)(amount * CUT / STEPS)}
    train(toy_data, tmp_path / "run", tiny(run=half))
    assert max(losses(tmp_path / "run")) in (CUT, CUT + 1)
    train(toy_data, tmp_path / "run", tiny(run=budget), resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")
    assert RunFolder.open(tmp_path / "run").config == tiny(run=budget)


def test_seconds_include_what_was_done_before(
    toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    run = tmp_path / "run"
    train(toy_data, run, tiny(run=steps(CUT)))
    before = read_metrics(run)[-1]
    train(toy_data, run, tiny(run=steps(STEPS)), resume=True)
    resumed = [line for line in read_metrics(run) if line["event"] == "resume"]
    assert [line["tokens"] for line in resumed] == [CUT * STEP_TOKENS]
    assert abs(resumed[0]["seconds"] - before["seconds"]) < 0.1
    assert read_metrics(run)[-1]["seconds"] > before["seconds"]
    with pytest.raises(
        UserError, match=r"--seconds is 1e-06, but .* has trained for .* seconds alr"
    ):
        train(toy_data, run, tiny(run={"seconds": 1e-6}), resume=True)


@pytest.mark.parametrize("damage", ["cut short", "one bit", "missing"])
def test_a_damaged_step_is_passed_over_aloud(
    damage: str,
    toy_data: Path,
    tmp_path: Path,
    tiny: Settings,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny(run=steps(STEPS), checkpoint=EACH)
    train(toy_data, tmp_path / "straight", config)
    killed(toy_data, tmp_path / "run", config)
    file = tmp_path / "run" / f"step-{CUT}" / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(content[:-9])
    else:
        content[-9] ^= 4
        file.write_bytes(content)
    capsys.readouterr()
    train(toy_data, tmp_path / "run", config, resume=True)
    said = capsys.readouterr().err
    assert f"step {CUT} is damaged and passed over: model.safetensors" in said
    assert f"Going on from step {CUT - 1}, in" in said
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_a_damaged_last_step_is_reached_again(
    toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    config, run = tiny(run=steps(CUT), checkpoint=EACH), tmp_path / "run"
    train(toy_data, run, config)
    file = run / f"step-{CUT}" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    train(toy_data, run, config, resume=True)
    assert file.read_bytes() == whole
    assert list(losses(run)) == list(range(1, CUT + 1))


def test_when_all_steps_are_damaged_nothing_starts_again_in_silence(
    toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    config, run = tiny(run=steps(CUT)), tmp_path / "run"
    train(toy_data, run, config)
    (run / f"step-{CUT}" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no whole checkpoint"):
        train(toy_data, run, config, resume=True)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"model": {"width": 32}}, "model.width was 16 in .* and is now 32"),
        ({"model": {"tied": True}}, "model.tied was False in .* and is now True"),
        ({"loss": {"samples": 30}}, "loss.samples was 20 in .* and is now 30"),
        ({"data": {"batch": 5}}, "data.batch was 4 in .* and is now 5"),
        ({"optim": {"lr": 1.0}}, "optim.lr was 0.002 in .* and is now 1.0"),
        ({"run": {"seed": 2, **steps(99)}}, "has 1, not 2"),
        ({"run": {"precision": "bf16", **steps(99)}}, "keeps its precision: .* has fp32, not bf16"),
    ],
)
def test_settings_that_steer_the_numbers_are_kept(
    sections: dict[str, Any], sentence: str, toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    run = tmp_path / "run"
    train(toy_data, run, tiny(run=steps(2)))
    before = (run / CONFIG_FILE).read_bytes()
    with pytest.raises(UserError, match=sentence):
        train(toy_data, run, tiny(**{"run": steps(99), **sections}), resume=True)
    assert (run / CONFIG_FILE).read_bytes() == before
    assert read_metrics(run)[-1]["event"] == "end"


def test_another_corpus_is_refused(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    (tmp_path / "text.txt").write_text("a b c d e f g\n" * 999)
    other = tmp_path / "other"
    prepare([str(tmp_path / "text.txt")], out=other, num_processes=1)
    train(toy_data, tmp_path / "run", tiny(run=steps(2)))
    fingerprints = [
        json.loads((d / "meta.json").read_text())["fingerprint"] for d in (toy_data, other)
    ]
    with pytest.raises(UserError) as caught:
        train(other, tmp_path / "run", tiny(run=steps(9)), resume=True)
    assert all(fingerprint[:12] in str(caught.value) for fingerprint in fingerprints)


def test_the_same_corpus_may_have_moved(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    shutil.copytree(toy_data, tmp_path / "old")
    train(tmp_path / "old", tmp_path / "run", tiny(run=steps(2)))
    (tmp_path / "old").rename(tmp_path / "new")
    train(tmp_path / "new", tmp_path / "run", tiny(run=steps(4)), resume=True)
    assert RunFolder.open(tmp_path / "run").data == (tmp_path / "new").resolve()


def test_there_must_be_a_run(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    with pytest.raises(UserError, match=r"run is not a run folder: it has no config\.toml"):
        train(toy_data, tmp_path / "run", tiny(run=steps(2)), resume=True)
    assert not (tmp_path / "run").exists()


def test_a_budget_smaller_than_what_is_spent_is_refused(
    toy_data: Path, tmp_path: Path, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(toy_data, run, tiny(run=steps(20)))
    before = (run / CONFIG_FILE).read_bytes()
    with pytest.raises(
        UserError, match=r"--tokens is 280, but .* has trained for 560 tokens already"
    ):
        train(toy_data, run, tiny(run=steps(10)), resume=True)
    assert (run / CONFIG_FILE).read_bytes() == before
    train(toy_data, run, tiny(run=steps(20)), resume=True)  # the same budget, spent, is none
    capsys.readouterr()
    train(toy_data, run, tiny(run=steps(22)), resume=True)
    said = "Its budget in tokens was 560 and is now 616; 560 are spent."
    assert said in capsys.readouterr().err


def test_patience_is_kept_over_a_stop(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    """The model gets worse from the first evaluation on."""

    def config(patience: int, count: int) -> RunConfig:
        return tiny(
            run=steps(count),
            eval={"patience": patience, "every_tokens": STEP_TOKENS, "tokens": 100},
            optim={"rows": "sgd", "row_lr": 3.0, "clip": 0.0},
            checkpoint=EACH,
        )

    train(toy_data, tmp_path / "straight", config(4, 50))
    end = read_metrics(tmp_path / "straight")[-1]
    assert end["reason"] == "no new best in 4 evaluations" and end["step"] < 50
    killed(toy_data, tmp_path / "run", config(4, 50), at=end["step"] - 2)
    train(toy_data, tmp_path / "run", config(4, 50), resume=True)
    assert read_metrics(tmp_path / "run")[-1]["step"] == end["step"]
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    train(toy_data, tmp_path / "run", config(4, 50), resume=True)  # stays stopped
    assert read_metrics(tmp_path / "run")[-1]["step"] == end["step"]


def test_the_best_perplexity_is_that_of_the_best_step_on_disk(
    toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the save of a better one has failed."""
    run = tmp_path / "run"
    evaluations = {"every_tokens": 4 * STEP_TOKENS, "tokens": 100}
    train(toy_data, run, tiny(run=steps(4), eval=evaluations))
    trainer = Trainer(RunFolder.open(run), tiny(run=steps(8)), Corpus.open(toy_data), CPU)
    trainer.restore(resume=True)
    first = trainer.run.best_ppl
    with trainer.run.recording(resumed=True):
        assert trainer.run.take_evaluation(first / 2, None)
        assert trainer.run.best_ppl == first  # it is not on disk
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step_folder, "save_tensors", full_disk)
            with pytest.raises(UserError, match="The disk is full"):
                trainer.save(best=True)
        assert trainer.run.best_ppl == first
        trainer.save(best=True)
        assert trainer.run.best_ppl == first / 2
    again = Trainer(RunFolder.open(run), tiny(run=steps(8)), Corpus.open(toy_data), CPU)
    again.restore(resume=True)
    assert again.run.best_ppl == first / 2


def full_disk(tensors: Any, file: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_step_that_another_version_has_saved(
    toy_data: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    config = tiny(run={"tokens": 20 * STEP_TOKENS})
    state = Run.state
    with monkeypatch.context() as other_version:
        other_version.setattr(
            Run, "state", lambda run: {k: v for k, v in state(run).items() if k != "num_worse"}
        )
        train(toy_data, out, config)
    with pytest.raises(UserError, match="has no num_worse: another version of thinwire has saved"):
        train(toy_data, out, config, resume=True)
