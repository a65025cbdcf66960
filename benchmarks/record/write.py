"""Writes what a benchmark has found: who measured where, JSON, and a table.

Machines drift, so what is compared is measured side by side, round by round: quote ratios, not
rates.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.record import tables

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(os.environ.get("THINWIRE_RESULTS", tables.RESULTS))


def machine() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    import torch

    import thinwire

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = [line.split(":") for line in info.read_text().splitlines() if ":" in line]
        cpu = next((value.strip() for key, value in fields if key.startswith("model name")), cpu)
    spec = sys.modules["__main__"].__spec__
    module = spec.name if spec else ""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cpu": cpu,
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "thinwire": thinwire.__version__,
        "commit": commit(),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    }


def commit() -> str:
    """The commit of the code, marked where it is not what was committed; results are no code."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    results = ("benchmarks/results", "benchmarks/README.md", "docs/images")
    changed = git("status", "--porcelain", "--", ":/", *(f":(top,exclude){p}" for p in results))
    return git("describe", "--always") + ("-dirty" if changed else "")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (least to most)`."""
    low, high = min(values), max(values)
    return f"{median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows with the same keys as a Markdown table."""
    rows = list(rows)
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *[[str(row[h]) for h in heads] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(name: str, title: str, body: str, record: Mapping[str, Any]) -> None:
    """Write results/NAME.json and results/NAME.md, print the latter, and put it into README.md."""
    where = machine()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": where, **record}, indent=1) + "\n")
    about = (
        f"{where['cpu']}, {where['cores']} cores ({where['vector_instructions']}), "
        f"torch {where['torch']}, Python {where['python']}, thinwire {where['commit']}, "
        f"{where['date']}: `{where['command']}`"
    )
    text = f"# {title}\n\n{body}\n{about}\n"
    (RESULTS / f"{name}.md").write_text(text)
    if RESULTS == tables.RESULTS:
        tables.main()
    print(text)
