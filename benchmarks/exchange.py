"""What does an exchange cost? Two workers of one core each, over links of a given rate.

Every figure is a share of what *the same two processes reach side by side without any exchange*,
measured in turns in the same run. The workers live in network namespaces of their own with `tc tbf`
on their links, which needs root. The novels, 67 k words, LSTM of
width 256, defaults but for what the table names.

    python benchmarks/exchange.py [--rounds N] [--seconds S] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lab.cluster import Cluster
from lab.runs import start_alone, start_async, start_together, wait
from record import novels, spread, table, write

WORKERS = 2


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    rate: str | None
    flags: str = ""


ALONE = Case("no exchange", None)
CASES = (
    Case("sync fp32", "1gbit", "--exchange sync"),
    Case("sync fp32, batch 256", "1gbit", "--exchange sync --data.batch 256"),
    Case("sync bf16", "100mbit", "--exchange sync --codec bf16"),
    Case("sync int8", "100mbit", "--exchange sync --codec int8"),
    Case("sync int8, batch 256", "100mbit", "--exchange sync --codec int8 --data.batch 256"),
    Case("periodic int8", "20mbit", "--exchange periodic --codec int8"),
    Case("async fp32", "1gbit", "--exchange async"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--only", nargs="+", help="names of cases")
    arguments = parser.parse_args()
    data = arguments.data or novels()
    cases = [c for c in CASES if not arguments.only or c.name in arguments.only]
    found: dict[str, list[dict[str, Any]]] = {c.name: [] for c in (ALONE, *cases)}
    for _ in range(arguments.rounds):
        for case in (ALONE, *cases):
            found[case.name].append(measure(case, data, arguments.seconds))
            print(case.name, found[case.name][-1], file=sys.stderr)
    rows = []
    for case in (ALONE, *cases):
        runs = found[case.name]
        shares = [
            run["tokens_per_second"] / alone["tokens_per_second"]
            for run, alone in zip(runs, found[ALONE.name], strict=True)
        ]
        rows.append(
            {
                "exchange": case.name,
                "link": case.rate or "none",
                "tokens/s": f"{median(run['tokens_per_second'] for run in runs):,.0f}",
                "share of no exchange": spread(shares),
                "MB a step a worker": f"{median(run['step_bytes'] for run in runs) / 1e6:.3f}",
                "of dense": f"1/{median(run['of_dense'] for run in runs):.0f}",
                "wait, of the time": f"{median(run['waiting'] for run in runs):.2f}",
                "link measured, Mbit/s": f"{median(run['link'] for run in runs) / 1e6:,.0f}",
                "server, share of a core": f"{median(run['server_share'] for run in runs):.2f}",
            }
        )
    body = (
        "Two workers, one thread and one core each; shares from "
        f"{arguments.rounds} rounds side by side (median, least to most).\n\n{table(rows)}"
    )
    write("exchange", "The cost of an exchange", body, {"runs": found, "seed": 1})


def measure(case: Case, data: Path, seconds: float) -> dict[str, Any]:
    """One run of a case."""
    folder = Path(tempfile.mkdtemp())
    is_async = "async" in case.flags
    flags = [*settings(seconds), *case.flags.split()]
    try:
        with Cluster(WORKERS + is_async, case.rate, cores=range(WORKERS)) as cluster:
            link = cluster.measured_rate() if case is not ALONE else 0.0
            if case is ALONE:
                processes = start_alone(cluster, WORKERS, data, folder, flags)
            elif is_async:
                processes = start_async(cluster, WORKERS, data, folder, flags)
            else:
                processes = start_together(cluster, WORKERS, data, folder, flags)
            cpu_seconds = wait(processes, folder, seconds + 180.0)
        # A step is one of all workers together, but of each its own where nobody waits.
        runs = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
        found = [read(run, 1 if is_async else WORKERS) for run in runs]
    finally:
        shutil.rmtree(folder)
    server_share = cpu_seconds[0] / seconds if is_async else 0.0
    total = {"link": link, "server_share": server_share}
    for key in ("tokens_per_second", "step_bytes", "of_dense", "waiting"):
        total[key] = sum(part[key] for part in found)
    return total


def settings(seconds: float) -> list[str]:
    """Flags of every run: one thread, and nothing but training."""
    flags = {"seconds": seconds, "threads": 1, "eval.every_seconds": 1e9, "eval.tokens": 2000}
    flags |= {"checkpoint.every_seconds": 1e9, "metrics.every_seconds": 1.0}
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


def read(run: Path, step_workers: int) -> dict[str, float]:
    """What the metrics of a run say; its first fifth, in which caches fill, does not count."""
    from thinwire.train.metrics import read_metrics

    lines = read_metrics(run)
    train = [line for line in lines if line["event"] == "train"]
    steady = train[len(train) // 5 :]
    first, last = steady[0], steady[-1]
    seconds = last["seconds"] - first["seconds"]
    steps = last["step"] - first["step"]
    found = {"tokens_per_second": (last["tokens"] - first["tokens"]) / seconds}
    if "bytes_sent" not in last:
        return found | {"step_bytes": 0.0, "of_dense": 0.0, "waiting": 0.0}
    sent = last["bytes_sent"] - first["bytes_sent"]
    dense = last["bytes_dense"] - first["bytes_dense"]
    waited = last["exchange_seconds"] - first["exchange_seconds"]
    return found | {
        "step_bytes": sent / steps / step_workers,
        "of_dense": dense / sent,
        "waiting": waited / seconds,
    }


if __name__ == "__main__":
    main()
