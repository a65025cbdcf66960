"""Precision: auto takes bf16 only where there are units and it is clearly faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from thinwire.config import RunConfig
from thinwire.runs import precision
from thinwire.runs.opening import summary
from thinwire.runs.precision import has_bf16_units, speed_up, with_precision

Settings = Callable[..., RunConfig]
CPU = torch.device("cpu")
WIDE = {"width": precision.LEAST_WIDTH}


def never(config: RunConfig, device: torch.device) -> float:
    raise AssertionError("there was nothing to find out")


@pytest.mark.parametrize(
    ("units", "times_as_fast", "found"), [(True, 1.5, "bf16"), (True, 1.1, "fp32")]
)
def test_auto_is_what_the_probe_finds(
    units: bool, times_as_fast: float, found: str, tiny: Settings, monkeypatch: Any
) -> None:
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: units)
    monkeypatch.setattr(precision, "speed_up", lambda config, device: times_as_fast)
    config = tiny(run={"precision": "auto"}, model=WIDE)
    assert with_precision(config, CPU).run.precision == found


@pytest.mark.parametrize(
    ("units", "width"), [(False, precision.LEAST_WIDTH), (True, precision.LEAST_WIDTH - 4)]
)
def test_auto_without_units_or_width_is_fp32_unprobed(
    units: bool, width: int, tiny: Settings, monkeypatch: Any
) -> None:
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: units)
    monkeypatch.setattr(precision, "speed_up", never)
    config = tiny(run={"precision": "auto"}, model={"width": width})
    assert with_precision(config, CPU).run.precision == "fp32"


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_not_probed(asked: str, tiny: Settings, monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: True)
    monkeypatch.setattr(precision, "speed_up", never)
    config = tiny(run={"precision": asked}, model=WIDE)
    assert with_precision(config, CPU) is config


@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
@pytest.mark.parametrize("loss", ["sampled", "adaptive"])
def test_the_probe_takes_steps_of_the_model(
    kind: str, loss: str, tiny: Settings, monkeypatch: Any
) -> None:
    monkeypatch.setattr(precision, "PROBE_SECONDS", 0.0)
    config = tiny(model={"kind": kind, "width": 64}, loss={"kind": loss})
    assert speed_up(config, CPU) > 0.0


@pytest.mark.parametrize(
    ("flags", "units"),
    [("avx512f avx512_bf16", True), ("amx_bf16", True), ("avx512f avx2", False), (None, False)],
)
def test_units_are_what_the_processor_says(
    flags: str | None, units: bool, monkeypatch: Any
) -> None:
    def read(path: Path, encoding: str) -> str:
        assert str(path) == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError
        return f"processor : 0\nflags : fpu {flags}\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert has_bf16_units(CPU) == units
    assert not has_bf16_units(torch.device("meta"))


def test_bf16_without_units_is_said(tiny: Settings, monkeypatch: Any) -> None:
    config = tiny(run={"precision": "bf16"})
    limits = {"tokens": 5.0}
    for units in (True, False):
        monkeypatch.setattr("thinwire.runs.opening.has_bf16_units", lambda device, u=units: u)
        sentence = summary(config, CPU, 1, 10, 5, 3, limits)
        assert "on cpu in bf16" in sentence and ("no units" in sentence) != units
