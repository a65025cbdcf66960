"""A trained run for the verbs that use one."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_run(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the toy text; to be read only."""
    from thinwire.config import RunConfig
    from thinwire.training.loop import train

    out = tmp_path_factory.mktemp("run") / "run"
    config = RunConfig.from_dict(
        {
            "run": {"tokens": 6000, "threads": 1},
            "model": {"width": 16, "layers": 1},
            "loss": {"samples": 40},
            "data": {"batch": 8, "length": 12},
            "optim": {"lr": 0.01, "row_lr": 0.5},
        }
    )
    train(toy_data, out, config)
    return out


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put bytes on standard input."""
    return lambda content: monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    )
