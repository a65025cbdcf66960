"""The examples run as they are, and learn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def run(example: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", example],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_runs(example: Path) -> None:
    perplexities = [float(found) for found in re.findall(r"perplexity ([\d.]+)", run(example))]
    assert perplexities == sorted(perplexities, reverse=True) and perplexities[-1] < 3
