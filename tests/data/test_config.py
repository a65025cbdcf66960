from __future__ import annotations

import pytest

from thinwire.data.config import DataConfig
from thinwire.errors import UserError


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"length": 0}, {"context": "page"}])
def test_refuses_what_makes_no_batch(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(UserError, match=rf"data\.{name} is"):
        DataConfig(**wrong)
