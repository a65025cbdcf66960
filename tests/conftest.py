"""What all tests share: hypothesis settings, the command line as a process, a text to train on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# No test depends on timing, and CI draws the same examples every time.
settings.register_profile("thinwire", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("thinwire")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def thinwire(tmp_path: Path) -> Run:
    """Run `thinwire ARG...` as a process of its own in `tmp_path`; standard input is `stdin`."""

    def run(*args: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "thinwire", *map(str, args)]
        return subprocess.run(
            command, cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=110
        )

    return run


def sentences(num_lines: int, seed: int = 0) -> list[str]:
    """Lines of a toy English: regular enough to learn from, irregular enough to be a text."""
    rng = random.Random(seed)
    nouns = [f"{a}{b}" for a in ("cat", "dog", "bird", "fish", "tree") for b in ("", "s", "let")]
    verbs = ["sees", "hears", "follows", "finds", "likes"]
    lines = []
    for _ in range(num_lines):
        subject, object_ = rng.choice(nouns), rng.choice(nouns)
        line = f"The {subject} {rng.choice(verbs)} the {object_}"
        if rng.random() < 0.3:
            line += f" {rng.randrange(100)} times"
        lines.append(line + rng.choice([".", ".", "!", ", they say."]))
    return lines


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 15,635 training tokens and 122 words; to be read only."""
    from thinwire.data.prepare import prepare

    folder = tmp_path_factory.mktemp("toy")
    text = folder / "book.txt"
    text.write_text("\n".join(sentences(2000)) + "\n", encoding="utf-8")
    prepare([str(text)], out=folder / "data", valid=0.05, min_count=3, num_processes=1)
    return folder / "data"


@pytest.fixture(scope="session")
def toy_run(toy_data: Path) -> Path:
    """A run folder: a tiny model that has seen 6,000 tokens of `toy_data`; to be read only."""
    from thinwire.config import RunConfig
    from thinwire.train.loop import train

    out = toy_data.parent / "run"
    settings = {
        "run": {"tokens": 6000, "threads": 1},
        "model": {"width": 16},
        "loss": {"samples": 50},
        "data": {"batch": 4},
    }
    train(toy_data, out, RunConfig.from_dict(settings))
    return out


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A small text file, `book.txt` in `tmp_path`."""
    path = tmp_path / "book.txt"
    path.write_text("\n".join(sentences(2000)) + "\n", encoding="utf-8")
    return path
