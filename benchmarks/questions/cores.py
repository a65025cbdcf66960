"""Threads in one process, or several workers? The same seconds on all cores of this machine.

The same sequences a step in all, so that what differs is how the cores are used.

    python -m benchmarks.questions.cores [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.record.write import spread, table, write

BATCH, SECONDS = 64, 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of three seconds")
    arguments = parser.parse_args()
    rounds, seconds = (1, 3.0) if arguments.quick else (arguments.rounds, SECONDS)
    cores = os.cpu_count() or 1
    threads = f"one worker of {cores} threads"
    each = ["--workers", str(cores), "--threads", "1", "--data.batch", str(BATCH // cores)]
    ways = {
        threads: ["--threads", str(cores), "--data.batch", str(BATCH)],
        f"{cores} workers of one thread, sync": each,
        f"{cores} workers of one thread, periodic": [*each, "--exchange", "periodic"],
        f"{cores} workers of one thread, async": [*each, "--exchange", "async"],
    }
    data = data_folder(arguments)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, flags in ways.items():
            found[way].append(measure(data, flags, seconds))
    rows = []
    for way, runs in found.items():
        pairs = zip(runs, found[threads], strict=True)
        rows.append(
            {
                "cores": way,
                "tokens/s": f"{median(rate for rate, _ in runs):,.0f}",
                "times one worker": spread([a[0] / b[0] for a, b in pairs]),
                "validation ppl": spread([ppl for _, ppl in runs], 1),
            }
        )
    body = (
        f"{BATCH} sequences of 35 tokens a step in all, {seconds:.0f} s each, "
        f"{rounds} rounds in turns (median, least to most).\n\n{table(rows)}"
    )
    write(
        record_name("cores", arguments.corpus),
        "How to use the cores",
        body,
        {"runs": found, "seed": 1},
    )


def measure(data: Path, flags: list[str], seconds: float) -> tuple[float, float]:
    """Tokens/s and the validation perplexity after so many seconds."""
    from thinwire.runs.metrics import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "thinwire", "train", str(data), "--out", str(run)]
        command += ["--seconds", str(seconds), "--eval.every_seconds", "1e9", *flags]
        subprocess.run(command, check=True)
        lines = read_metrics(run)
    valid = [line for line in lines if line["event"] == "valid"][-1]
    return lines[-1]["tokens"] / lines[-1]["seconds"], valid["ppl"]


if __name__ == "__main__":
    main()
