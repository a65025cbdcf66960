"""Nothing timed steers a run whose budget is in tokens or epochs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from thinwire.config import RunConfig
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.clock import Budget
from thinwire.runs.due import Due
from thinwire.training.loop import train

Settings = Callable[..., RunConfig]
DECAY = {"rows": "adamw", "weight_decay": 0.5, "row_lr": 0.01}


@pytest.mark.parametrize(
    ("sections", "evaluations", "saves"),
    [
        ({"run": {"tokens": 2000}}, "clock", "clock"),
        ({"run": {"tokens": 2000}, "optim": {"schedule": "plateau"}}, "tokens", "clock"),
        ({"run": {"tokens": 2000}, "eval": {"patience": 2}}, "tokens", "clock"),
        ({"run": {"tokens": 2000}, "optim": DECAY}, "tokens", "tokens"),
        ({"run": {"epochs": 2.0}, "optim": DECAY}, "tokens", "tokens"),
        ({"run": {"tokens": 2000}, "exchange": {"kind": "periodic"}}, "tokens", "tokens"),
        ({"run": {"tokens": 2000}, "exchange": {"delay": 1}}, "tokens", "tokens"),
        ({"run": {"seconds": 9.0}, "exchange": {"kind": "periodic"}}, "clock", "clock"),
        ({"run": {"seconds": 9.0}, "optim": DECAY}, "clock", "clock"),
    ],
)
def test_what_would_steer_is_counted_in_tokens(
    sections: dict[str, Any], evaluations: str, saves: str, tiny: Settings
) -> None:
    """A 20th of 2,000 tokens, or of two passes over 1,000; or 60 and 300 seconds."""
    config = tiny(**sections)
    due = Due(config, Budget(config.run), 2, 1000, tokens=0, seconds=0.0)
    for each, by, seconds in ((due.evaluation, evaluations, 60.0), (due.save, saves, 300.0)):
        assert not each.due(99, seconds - 1)
        assert each.due(100, seconds - 1) == (by == "tokens")
        assert each.due(101, seconds + 1) == (by == "clock")


def test_paying_decay_at_an_evaluation_does_not_change_a_bit(
    toy_data: Path, tmp_path: Path, tiny: Settings
) -> None:
    """Decay that is paid in two parts is rounded twice."""
    models = []
    for name, seconds in (("always", 0.0), ("never", 1e6)):
        often = {"every_seconds": seconds}
        sections = {"eval": often | {"tokens": 60}, "checkpoint": often, "optim": DECAY}
        train(toy_data, tmp_path / name, tiny(run={"tokens": 30 * 28}, **sections))
        models.append(Checkpoints(tmp_path / name).load().open("model"))
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name
