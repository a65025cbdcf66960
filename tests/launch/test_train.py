"""`thinwire.train`: the command as a function, what it hears and how it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import thinwire
from thinwire.data.corpus import Corpus
from thinwire.runs.metrics import read_metrics

SMALL: dict[str, Any] = {
    "threads": 1,
    "model": {"width": 16},
    "loss": {"samples": 20},
    "data": {"batch": 4, "length": 7},
    "metrics": {"every_steps": 1},
}
STEP_TOKENS = 28


def test_returns_the_model_of_the_run(toy_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    model = thinwire.train(str(toy_data), str(out), tokens=10 * STEP_TOKENS, **SMALL)
    assert isinstance(model, thinwire.TrainedModel)
    assert model.run.config.model.width == 16
    assert model.score("The cat").logprob == thinwire.load(out).score("The cat").logprob
    assert repr(model) == f"TrainedModel({str(out)!r}, step 10: lstm of width 16, 122 words)"


def test_takes_a_corpus_a_settings_file_and_arguments_over_it(
    toy_data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[run]\nseed = 7\ntokens = 56\n[model]\nwidth = 24\nlayers = 2\n")
    corpus, small = Corpus.open(toy_data), {**SMALL, "model": {"width": 16}}
    config = thinwire.train(corpus, tmp_path / "run", config=file, **small).run.config
    assert (config.run.seed, config.run.tokens) == (7, 56)
    assert (config.model.width, config.model.layers) == (16, 2)
    assert repr(corpus).count("\n") == 0 and "vocabulary 122" in repr(corpus)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": {"widht": 8}}, r"setting in \[model\] of thinwire.train: widht; did .* width"),
        ({"model": {"width": 8.5}}, "width in thinwire.train is 8.5, and must be a whole number"),
        ({"model": 3}, r"model in thinwire.train must be a section, \[model\]"),
        ({"seconds": -1}, "--seconds is -1"),
        ({"config": "none.toml"}, "no settings file none.toml"),
        ({"resume": True}, "is not a run folder"),
        ({"workers": 2, "on_event": print}, "called by a single worker, .* and 2 workers"),
    ],
)
def test_refused(settings: dict[str, Any], sentence: str, toy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(thinwire.UserError, match=sentence):
        thinwire.train(toy_data, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_torchrun_starts_the_command_instead(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(thinwire.UserError, match="under torchrun, use"):
        thinwire.train(toy_data, tmp_path / "run")


def test_on_event_hears_what_is_recorded(toy_data: Path, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    out = tmp_path / "run"
    # What it returns does not stop the run, but for False.
    thinwire.train(
        toy_data,
        out,
        tokens=3 * STEP_TOKENS,
        on_event=lambda line: heard.append(line) or 0,  # type: ignore[func-returns-value]
        **SMALL,
    )
    assert [line["event"] for line in heard] == ["start", *["train"] * 3, "valid", "end"]
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    assert heard == [json.loads(line) for line in text.splitlines()]


def test_on_event_stops_the_run_which_can_be_resumed(toy_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    model = thinwire.train(
        toy_data,
        out,
        tokens=20 * STEP_TOKENS,
        on_event=lambda line: line.get("step", 0) < 5,
        **SMALL,
    )
    assert model.loaded_step == 6  # the next step was to be
    last = read_metrics(out)
    assert [line["event"] for line in last[-2:]] == ["valid", "end"]
    assert last[-1]["reason"] == "stopped by on_event"
    thinwire.train(toy_data, out, resume=True)
    end = read_metrics(out)[-1]
    assert (end["step"], end["reason"]) == (20, "tokens spent")


def test_stopped_at_the_start_it_has_learnt_nothing(toy_data: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "tokens": 20 * STEP_TOKENS}
    model = thinwire.train(toy_data, tmp_path / "run", on_event=lambda line: False, **settings)
    assert model.loaded_step == 0


def test_an_error_of_on_event_is_the_callers(toy_data: Path, tmp_path: Path) -> None:
    def fail(line: dict[str, Any]) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        thinwire.train(toy_data, tmp_path / "run", on_event=fail, **SMALL)


def test_an_interrupt_saves_and_can_be_resumed(toy_data: Path, tmp_path: Path) -> None:
    def interrupt(line: dict[str, Any]) -> None:
        if line.get("step") == 4:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        thinwire.train(toy_data, out, tokens=8 * STEP_TOKENS, on_event=interrupt, **SMALL)
    end = read_metrics(out)[-1]
    assert end["reason"] == "interrupted" and (out / f"step-{end['step']}").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert thinwire.train(toy_data, out, resume=True).run.path == out
    assert read_metrics(out)[-1]["step"] == 8


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_several_workers(kind: str, toy_data: Path, tmp_path: Path) -> None:
    program = f"""
import thinwire
if __name__ == "__main__":
    settings = {SMALL!r}
    model = thinwire.train(
        {str(toy_data)!r}, "run", tokens=560, workers=2, exchange={{"kind": {kind!r}}}, **settings
    )
    print(model.run.config.run.workers)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    assert "validation perplexity" in done.stderr


# What a notebook's kernel is to rich, and IPython's own `display`.
NOTEBOOK = """
import builtins, sys
from types import ModuleType

class ZMQInteractiveShell:
    pass

shown = []
builtins.get_ipython = ZMQInteractiveShell
ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
ipython.display, display.display = display, lambda found: shown.append(found.text)
sys.modules.update({"IPython": ipython, "IPython.display": display})
"""


def test_progress_is_shown_in_a_notebook(book: Path, tmp_path: Path) -> None:
    program = f"""{NOTEBOOK}
import thinwire
data = thinwire.prepare({str(book)!r}, out="data", num_processes=1)
thinwire.train(data, "run", tokens=2800, **{SMALL!r})
print("".join(shown))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens/s") == 9 and "validation perplexity" in done.stdout
