"""What every benchmark shares: who measured where, corpora, child processes, tables.

A benchmark measures in child processes of its own, so that peak memory is that of the run, and puts
what it compares side by side, round by round, because machines drift: quote ratios, not rates.
"""

from __future__ import annotations

import json
import lzma
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import tables

HERE = Path(__file__).resolve().parent
RESULTS = Path(os.environ.get("THINWIRE_RESULTS", HERE / "results"))
NOVELS = HERE.parent.parent / "shared" / "data" / "novels"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "thinwire" / "benchmarks"


def novels_text() -> dict[str, Path]:
    """The novels as plain text files: train, valid, test."""
    folder = CACHE / "novels-text"
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in ("train", "valid", "test"):
        files[split] = folder / f"{split}.txt"
        if not files[split].exists():
            source = NOVELS / f"{split}.txt.xz"
            if not source.exists():
                sys.exit(f"this benchmark needs the novels corpus in {NOVELS}, or --data DATA")
            files[split].write_bytes(lzma.decompress(source.read_bytes()))
    return files


def novels(*options: str) -> Path:
    """The novels as a data folder, prepared with these further options of `thinwire prepare`."""
    files = novels_text()
    name = "-".join(["novels", *(option.lstrip("-") for option in options)])
    return prepared(
        name, files["train"], "--valid", files["valid"], "--test", files["test"], *options
    )


def prepared(name: str, text: Path, *options: str | Path) -> Path:
    """A data folder in the cache, made by `thinwire prepare` the first time."""
    out = CACHE / name
    if not out.exists():
        command = [sys.executable, "-m", "thinwire", "prepare", str(text), "--out", str(out)]
        subprocess.run([*command, *map(str, options)], check=True)
    return out


def child(script: Path, *arguments: object) -> dict[str, Any]:
    """Run `script` with these arguments in a process of its own; its last line is JSON."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_memory_bytes() -> int:
    """Peak resident memory of this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    import torch

    import thinwire

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = [line.split(":") for line in info.read_text().splitlines() if ":" in line]
        cpu = next((value.strip() for key, value in fields if key.startswith("model name")), cpu)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cpu": cpu,
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "thinwire": thinwire.__version__,
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
    }


def commit() -> str:
    """The commit of the code, marked where it is not what was committed; results are no code."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
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
