"""Tiny trained runs, each made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

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
    """A model with these settings, trained for some steps on the toy text."""

    @cache
    def make(
        kind: str = "lstm",
        loss: str = "sampled",
        tied: bool = False,
        context: str = "text",
        ngrams: int = 0,
    ) -> TrainedModel:
        out = tmp_path_factory.mktemp("run") / "run"
        width = 64 if loss == "adaptive" else 16
        config = RunConfig.from_dict(
            {
                "run": {"tokens": 6000, "threads": 1},
                "model": {
                    "kind": kind,
                    "width": width,
                    "layers": 1,
                    "heads": 2,
                    "tied": tied,
                    "ngrams": ngrams,
                    "ngram_rows": 500,
                },
                "loss": {"kind": loss, "samples": 40},
                "data": {"batch": 8, "length": 12, "context": context},
                "optim": {"lr": 0.01, "row_lr": 0.5},
            }
        )
        train(toy_data, out, config)
        return thinwire.load(out)

    return make
