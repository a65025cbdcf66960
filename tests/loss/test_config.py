from __future__ import annotations

from typing import Any

import pytest

from thinwire.errors import UserError
from thinwire.loss.config import LossConfig


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "hinge"}, "loss.kind is hinge, .* none of sampled, full, nce, adaptive"),
        ({"samples": 0}, "loss.samples is 0, but at least 1"),
        ({"power": 1.5}, "loss.power is 1.5, but it must lie between 0 and 1"),
        ({"power": float("nan")}, "loss.power is nan"),
    ],
)
def test_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        LossConfig(**settings)
