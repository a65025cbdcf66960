"""The examples run as they are, and learn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


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


def test_own_loop() -> None:
    found = re.findall(r"perplexity ([\d.]+)", run(EXAMPLES / "own_loop.py"))
    perplexities = [float(value) for value in found]
    assert perplexities == sorted(perplexities, reverse=True) and perplexities[-1] < 3


def test_engine_beats_the_quadratic_surface() -> None:
    errors = re.findall(r"error ([\d.]+)", run(EXAMPLES / "engine.py"))
    surface, network = [float(value) for value in errors[:2]], [float(e) for e in errors[2:]]
    assert len(network) == 2
    for of_surface, of_network in zip(surface, network, strict=True):
        assert 0 < of_network < of_surface / 1.5
