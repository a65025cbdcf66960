"""What does a worker's processor time go into, and what of it would one alone not need?

Four emulated devices of 0.4 of a core train as in the four bars. Every worker counts how long its
main thread is on a core for each part of a step, and the kernel how long the other threads are.
Needs root, for the devices.

    python -m benchmarks.questions.processor [--seeds N ...] [--quick]

What is measured already is not measured again, but with `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from statistics import mean, median
from time import monotonic, thread_time
from typing import Any

from torch import Tensor

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.cluster import Cluster
from benchmarks.lab.four_bars import (
    ALONE,
    COMMON,
    DATA,
    LATE,
    NO_LINK,
    PERIODIC,
    QUICK_WORDS,
    RACE_BATCH,
    SYNC,
    Bar,
    rate_of,
    seconds_budget,
    start,
)
from benchmarks.lab.race import SHARE, WORKERS, steady
from benchmarks.lab.runs import wait
from benchmarks.record.kept import Kept
from benchmarks.record.write import spread, table, write
from thinwire.cli import app
from thinwire.data.batches import Batches
from thinwire.exchange.coded import CodedCollective
from thinwire.exchange.periodic import Periodic
from thinwire.exchange.sync import Sync
from thinwire.language_model import LanguageModel
from thinwire.optim.updater import Updater
from thinwire.training.loop import Trainer

TRAINING_SECONDS, QUICK_SECONDS = 30.0, 10.0
TIMEOUT_SECONDS = 300.0
ARITHMETIC, UPDATE, BATCH, EXCHANGE, REST = (
    "forward, backward",
    "rows and update",
    "next batch",
    "exchange",
    "rest",
)
MODULE, WORKER = "benchmarks.questions.processor", "--as-worker"
ROUNDS, GLOO = "threads of the rounds", "Gloo's threads"
PARTS = (ARITHMETIC, UPDATE, BATCH, EXCHANGE, REST, ROUNDS, GLOO)


@dataclass(frozen=True)
class Case:
    """A bar over a link, with so many sequences a step of each worker."""

    bar: Bar
    link: str
    batch: int = DATA.batch

    @property
    def name(self) -> str:
        """Under which its measurements are kept."""
        return f"{self.bar.name}/{self.link}/{self.batch}"


CASES = (
    Case(ALONE, NO_LINK),
    Case(SYNC, "300mbit"),
    Case(LATE, "300mbit"),
    Case(PERIODIC, "300mbit"),
    Case(PERIODIC, "20mbit"),
    Case(ALONE, NO_LINK, RACE_BATCH),
    Case(SYNC, "300mbit", RACE_BATCH),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    parser.add_argument("--quick", action="store_true", help="one case, some seconds, 10 k words")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    arguments = parser.parse_args()
    name = record_name("processor", arguments.corpus)
    cases, seeds, seconds = list(CASES), arguments.seeds, TRAINING_SECONDS
    if arguments.quick:
        name, cases, seeds, seconds = "processor-quick", [CASES[-1]], [1], QUICK_SECONDS
    data = data_folder(arguments, *([f"--vocab-size={QUICK_WORDS}"] if arguments.quick else []))
    kept = Kept(name, again=arguments.again)
    for seed in seeds:
        for case in cases:
            kept.measure(f"{case.name}/{seed}", partial(measure, case, seed, data, seconds))
    body = (
        f"Four devices of {SHARE} of a core and one thread each, settings of the four bars. "
        "Milliseconds of a\ncore that a step of a worker takes: the main thread's by what it was "
        "at, and those of the other threads.\nMedians of the seeds "
        f"{', '.join(map(str, seeds))}.\n\n"
        f"{table(row(case, kept.found, seeds) for case in cases)}\n"
        f"Measured at {kept.origins()}.\n"
    )
    write(name, "What processor time goes into", body, {"measurements": kept.found})


def row(case: Case, found: dict[str, dict[str, Any]], seeds: Sequence[int]) -> dict[str, str]:
    """A case's medians."""
    runs = [found[f"{case.name}/{seed}"] for seed in seeds]
    return {
        "bar": case.bar.title,
        "link": case.link,
        "sequences": str(case.batch),
        "s a step": f"{median(run['step_seconds'] for run in runs):.3f}",
        "wait, of the time": f"{median(run['waiting'] for run in runs):.2f}",
        "ms of a core": spread([sum(run["milliseconds"].values()) for run in runs], 1),
        **{part: f"{median(run['milliseconds'][part] for run in runs):.1f}" for part in PARTS},
    }


def measure(case: Case, seed: int, data: Path, seconds: float) -> dict[str, Any]:
    """Train, and tell what of a core a step of the average worker took."""
    folder = Path(tempfile.mkdtemp())
    flags = [*COMMON, "--threads", "1", "--data.batch", str(case.batch)]
    flags += [*seconds_budget(seconds), "--checkpoint.every_seconds", "1e9"]
    flags += case.bar.settings(case.link)
    num_runs = 1 if case.bar.on_wire else case.bar.workers
    try:
        with Cluster(WORKERS, rate_of(case.link), SHARE) as cluster:
            command = partial(worker, folder)
            processes = start(case.bar, cluster, data, folder, flags, seed, command)
            wait(processes, folder, TIMEOUT_SECONDS, num_runs=num_runs)
        runs = [steady(path.parent) for path in sorted(folder.glob("*/metrics.jsonl"))]
        accounts = [a_step(file) for file in folder.glob("*.account")]
    finally:
        shutil.rmtree(folder)
    assert len(accounts) == WORKERS
    rate = sum(run["tokens_per_second"] for run in runs)
    return {
        "step_seconds": WORKERS * case.batch * DATA.length / rate,
        "waiting": sum(run["waiting"] for run in runs),
        "milliseconds": {part: mean(account[part] for account in accounts) for part in PARTS},
    }


def a_step(account: Path) -> dict[str, float]:
    """Milliseconds of each part in a step; without the first fifth, as in `steady`."""
    lines = [json.loads(line) for line in account.read_text().splitlines()]
    first, last = lines[len(lines) // 5], lines[-1]
    steps = last["steps"] - first["steps"]
    return {
        part: 1000 * (last["seconds"].get(part, 0.0) - first["seconds"].get(part, 0.0)) / steps
        for part in PARTS
    }


# In a worker


def worker(folder: Path, *arguments: object) -> list[str]:
    """A command line of `thinwire` that leaves its account in the folder."""
    return [sys.executable, "-m", MODULE, WORKER, str(folder), *map(str, arguments)]


class Account:
    """Seconds that the main thread was on a core, by what it was at: the innermost timed call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts, self._since = [REST], thread_time()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, the time of which counts for this part."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._settle()
            self._parts.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._settle()
                self._parts.pop()

        return call

    def _settle(self) -> None:
        now = thread_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now


def work(folder: Path, arguments: Sequence[str]) -> None:
    """`thinwire` with these arguments, which adds a line to its account every second."""
    account, file = Account(), folder / f"{os.getpid()}.account"
    parts: list[tuple[str, type, tuple[str, ...]]] = [
        (ARITHMETIC, LanguageModel, ("loss",)),
        (ARITHMETIC, Tensor, ("backward",)),
        (UPDATE, Updater, ("rows", "apply")),
        (EXCHANGE, Sync, ("announce", "fetch", "push", "update", "total")),
        (EXCHANGE, CodedCollective, ("encode", "sum")),  # of early rows, while backward runs
        (EXCHANGE, Periodic, ("fetch", "push", "update", "total")),
        (BATCH, Batches, ("__next__",)),
        (BATCH, LanguageModel, ("touch",)),
    ]
    for part, kind, names in parts:
        for name in names:
            setattr(kind, name, account.timed(part, getattr(kind, name)))
    train_step, num_steps, wrote = Trainer.train_step, 0, monotonic()

    def counted(trainer: Trainer) -> Any:
        nonlocal num_steps, wrote
        agreed = train_step(trainer)
        num_steps += 1
        if monotonic() - wrote > 1.0:
            wrote = monotonic()
            line = {"steps": num_steps, "seconds": account.seconds | other_threads()}
            with file.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
        return agreed

    Trainer.train_step = counted  # type: ignore[assignment, method-assign]
    sys.argv = ["thinwire", *arguments]
    app.main()


def other_threads() -> dict[str, float]:
    """Seconds that the other threads of this process were on a core so far.

    Gloo's have its name; with one thread for arithmetic, what is left are those of the rounds.
    """
    seconds = dict.fromkeys((ROUNDS, GLOO), 0.0)
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if thread.name != str(os.getpid()):
                kind = GLOO if "gloo" in (thread / "comm").read_text() else ROUNDS
                seconds[kind] += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return seconds


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        work(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
