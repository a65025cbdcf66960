"""The mean of a run's last steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import thinwire
from thinwire.cli.app import main
from thinwire.errors import UserError
from thinwire.runs.averaging import average_parameters
from thinwire.runs.checkpoints import Checkpoints


def test_the_mean_of_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=5)
    for step, value in ((1, 100.0), (2, 1.0), (3, 4.0), (10, 7.0)):
        checkpoints.save(step, {"model": {"w": torch.full((2, 2), value)}}, {})
    checkpoints.wait()
    steps, found = average_parameters(checkpoints, 3)
    assert steps == [2, 3, 10]
    assert torch.equal(found["w"], torch.full((2, 2), 4.0))
    assert average_parameters(checkpoints, 1)[1]["w"].tolist() == [[7.0, 7.0]] * 2
    with pytest.raises(UserError, match="keeps 4 steps, so 5 cannot be averaged"):
        average_parameters(checkpoints, 5)
    with pytest.raises(UserError, match="must be of 1 or more"):
        average_parameters(checkpoints, 0)


def test_the_command(toy_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = Checkpoints(toy_run).steps[-1]
    assert main(["eval", str(toy_run), "--step", str(newest), "--average", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["average_ppl"] == found["ppl"]  # the mean of one step, in a row of its own
    assert main(["eval", str(toy_run), "--average", "99"]) == 2
    assert main(["eval", str(toy_run), "--average", "1", "--text", "-"]) == 2
    assert main(["eval", str(toy_run), "--average", "1", "--adapter", "x"]) == 2
    with pytest.raises(UserError, match="name no step"):
        thinwire.load(toy_run, newest, average=1)
