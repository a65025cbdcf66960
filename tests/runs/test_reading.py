"""What a checkpoint says of the place in the text is checked before a run goes on from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thinwire.config import RunConfig
from thinwire.errors import UserError
from thinwire.parameter_server.serve import serve
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.reading import check_reading
from thinwire.runs.step_folder import checksum
from thinwire.training.loop import train
from thinwire.transport.messages import InProcessListener

GOOD: dict[str, Any] = {"epoch": 1, "step": 2, "streams": 8, "length": 7}
ASYNC = GOOD | {"workers": 2, "epochs": 1.25, "places": {"0": [1, 2, 9, 1.25], "1": [0, 0, 0, 0.0]}}


def test_what_runs_save_is_let_pass() -> None:
    check_reading(GOOD)
    check_reading(ASYNC)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epoch": -1}, "its batches have -1 as epoch"),
        ({"step": 1.5}, "its batches have 1.5 as step"),
        ({"streams": 0}, "its batches have 0 as streams"),
        ({"length": "7"}, "its batches have 7 as length"),
        ({"step": True}, "its batches have True as step"),
        ({"workers": 0}, "its batches have 0 as workers"),
        ({"epochs": float("nan")}, "its batches have nan as epochs"),
        ({"places": []}, "its batches have places that are no table"),
        ({"places": {"x": [0, 0, 0, 0]}}, r"its batches have \[0, 0, 0, 0\] as place x"),
        ({"places": {"0": [0, 0, 0]}}, r"its batches have \[0, 0, 0\] as place 0"),
        ({"places": {"0": None}}, "its batches have None as place 0"),
    ],
)
def test_what_makes_no_sense_is_named(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_reading(ASYNC | change)


def config(tokens: int) -> RunConfig:
    settings = {"run": {"tokens": tokens, "threads": 1}, "data": {"batch": 4, "length": 7}}
    small = {"model": {"width": 16}, "loss": {"samples": 20}, "eval": {"tokens": 60}}
    return RunConfig.from_dict(settings | small)


@pytest.fixture(scope="module")
def saved(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("saved") / "run"
    train(toy_data, run, config(28))
    return run


def rewrite(step: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a step's state, checksum included."""
    file, sums = step / "state.json", step / "checksums.json"
    state = json.loads(file.read_text())
    change(state)
    file.write_text(json.dumps(state))
    manifest = json.loads(sums.read_text())
    manifest["files"]["state.json"] = checksum(file)
    sums.write_text(json.dumps(manifest))


@pytest.mark.parametrize("how", ["train", "serve"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("batches"), "step-1 has no batches: another version"),
        (lambda state: state["batches"].pop("streams"), "is damaged: its batches have no streams"),
        (lambda state: state.update(batches=[]), "is damaged: its batches are no table"),
        (lambda state: state.pop("best_ppl"), "step-1 has no best_ppl: another version"),
        (lambda state: state.pop("schedule"), "step-1 has no schedule: another version"),
    ],
)
def test_a_run_says_that_it_cannot_go_on(
    how: str, change: Any, sentence: str, saved: Path, toy_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    rewrite(run / "step-1", change)
    assert Checkpoints(run).load().step == 1
    more = config(56)
    with pytest.raises(UserError, match=sentence):
        if how == "train":
            train(toy_data, run, more, resume=True)
        else:
            serve(toy_data, run, more, listener=lambda _: InProcessListener(), resume=True)
