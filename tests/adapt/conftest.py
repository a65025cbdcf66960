"""New text, unlike the toy text in what it says and in a few words."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thinwire.adapt.account import Account
from thinwire.adapt.adapt import adapt
from thinwire.adapt.options import AdaptOptions

Adapt = Callable[..., Account]


@pytest.fixture
def new_text(tmp_path: Path) -> Path:
    """Lines of known words in a new order, with some that the toy vocabulary lacks."""
    rng = random.Random(3)
    lines = [
        f"the {rng.choice(['cats', 'dogs'])} , the {rng.choice(['wombat', 'heron', 'birds'])} "
        f"follows {rng.choice(['fish', 'trees', 'quokka'])} ."
        for _ in range(300)
    ]
    path = tmp_path / "new.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def adapted(toy_run: Path, new_text: Path, tmp_path: Path) -> Adapt:
    """`adapted("name", method=..., ...)` adapts a copy of the toy run into `tmp_path / name`."""
    own = Path(shutil.copytree(toy_run, tmp_path / "toy-run"))

    def run(name: str, *, base: Path = own, **settings: Any) -> Account:
        texts = settings.pop("texts", [str(new_text)])
        mix = settings.pop("mix_with", None)
        resume = settings.pop("resume", False)
        defaults = {"tokens": 4000, "threads": 1, "lr": 0.01, "row_lr": 0.5}
        options = AdaptOptions(**{**defaults, **settings})
        return adapt(base, texts, tmp_path / name, options, mix_with=mix, resume=resume)

    return run
