"""Settings of runs so small that a step takes milliseconds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thinwire.config import RunConfig

torch.set_num_threads(1)

# Four streams of seven tokens: 28 tokens a step.
TINY: dict[str, dict[str, Any]] = {
    "run": {"threads": 1},
    "model": {"width": 16, "heads": 2},
    "loss": {"samples": 20},
    "data": {"batch": 4, "length": 7},
    "optim": {"lr": 0.002, "row_lr": 0.1, "schedule": "constant"},
    "metrics": {"every_steps": 1},
}


@pytest.fixture
def tiny() -> Any:
    """`tiny(run={"tokens": 560}, ...)`: settings, those given laid over small ones."""

    def make(**sections: dict[str, Any]) -> RunConfig:
        merged = {name: TINY.get(name, {}) | sections.get(name, {}) for name in TINY | sections}
        return RunConfig.from_dict(merged)

    return make
