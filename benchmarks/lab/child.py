"""A measurement in a process of its own, so that peak memory is that of what it measures."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any


def child(question: str, *arguments: object) -> dict[str, Any]:
    """What a script of `benchmarks/questions` prints in its last line, as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.questions.{question}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_memory_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def thinwire(*arguments: object) -> str:
    """One command of thinwire; its standard output."""
    command = [sys.executable, "-m", "thinwire", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
