"""Settings that make no sense are refused with a sentence; the settings do not need torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest

from thinwire.errors import UserError
from thinwire.models.config import ModelKind
from thinwire.optim import OptimConfig
from thinwire.optim.config import BLOCK_RATES, DenseKind, RowKind


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": 0.0}, "optim.lr must be above 0, and it is 0"),
        ({"row_lr": -1.0}, "optim.row_lr must be above 0, and it is -1"),
        ({"lr": float("nan")}, "optim.lr must be above 0, and it is nan"),
        ({"row_lr": float("inf")}, "optim.row_lr must be above 0, and it is inf"),
        ({"weight_decay": -0.1}, "optim.weight_decay must be 0 or more, and it is -0.1"),
        ({"clip": -1.0}, "optim.clip must be 0 or more, and it is -1"),
        ({"initial_accumulator": -1.0}, "optim.initial_accumulator must be 0 or more"),
        ({"beta1": 1.0}, "optim.beta1 must be at least 0 and below 1, and it is 1"),
        ({"beta2": 1.5}, "optim.beta2 must be at least 0 and below 1"),
        ({"momentum": -0.5}, "optim.momentum must be at least 0 and below 1"),
        ({"rho": 1.0}, "optim.rho must be at least 0 and below 1"),
        ({"warmup_steps": -1}, "optim.warmup_steps must be 0 or more, and it is -1"),
        ({"plateau_patience": -1}, "optim.plateau_patience must be 0 or more"),
        ({"plateau_factor": 1.0}, "optim.plateau_factor must be between 0 and 1"),
        ({"final_lr_fraction": 1.1}, "optim.final_lr_fraction must be from 0 to 1"),
        ({"kind": "adam", "weight_decay": 0.1}, "only adamw decays weights"),
        ({"kind": "adm"}, "optim.kind is adm, which is none of sgd, adagrad, adam, adamw"),
        ({"rows": "full"}, "optim.rows is full, which is none of sgd, adagrad, adagrad_full"),
        ({"schedule": "linear"}, "optim.schedule is linear, which is none of constant, cosine"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        OptimConfig(**settings)
    assert not str(raised.value).endswith(".")


def test_the_defaults_and_decay_with_adamw_are_accepted() -> None:
    OptimConfig()
    OptimConfig(kind="adamw", weight_decay=0.1)
    OptimConfig(rows="adamw", weight_decay=0.1)


def test_settings_need_no_torch() -> None:
    code = "import sys, thinwire.optim.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_rates_that_are_not_given_suit_the_model_and_the_optimiser() -> None:
    assert OptimConfig().rates == (5e-3, 0.2)
    assert OptimConfig().for_model("lstm").rates == (5e-3, 0.2)
    assert OptimConfig().for_model("transformer").rates == (2e-3, 0.2)
    assert OptimConfig(kind="sgd", rows="adam").for_model("transformer").rates == (0.1, 0.01)
    given = OptimConfig(lr=0.7, row_lr=0.3)
    assert given.for_model("transformer") == given


@pytest.mark.parametrize("model", get_args(ModelKind))
def test_every_kind_has_a_rate(model: str) -> None:
    assert model in BLOCK_RATES
    for kind in get_args(DenseKind):
        for rows in get_args(RowKind):
            lr, row_lr = OptimConfig(kind=kind, rows=rows).for_model(model).rates
            assert lr > 0 and row_lr > 0
