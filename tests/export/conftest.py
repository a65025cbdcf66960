"""Tiny trained runs to export, each made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import thinwire
from thinwire.config import RunConfig
from thinwire.inference.trained_model import TrainedModel
from thinwire.training.loop import train

torch.set_num_threads(1)

Trained = Callable[..., TrainedModel]


@pytest.fixture(scope="session")
def trained(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """`trained(kind="lstm", layers=2)`: a model with these settings, a few steps old.

    Large rates, so that no parameter is near where it started.
    """

    @cache
    def make(loss: str = "sampled", **model: Any) -> TrainedModel:
        out = tmp_path_factory.mktemp("run") / "run"
        config = RunConfig.from_dict(
            {
                "run": {"tokens": 3000, "threads": 1},
                "model": {"width": 16, "heads": 2, **model},
                "loss": {"kind": loss, "samples": 40},
                "data": {"batch": 8, "length": 12},
                "optim": {"lr": 0.02, "row_lr": 0.5},
            }
        )
        train(toy_data, out, config)
        return thinwire.load(out)

    return make
