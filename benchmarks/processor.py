"""What does a worker's processor time go into, and what of it would one alone not need?

Four emulated devices of 0.4 of a core train as in the four bars. Meanwhile the kernel says how long
each thread was on a core, and `py-spy` looks a few times a second at what the main thread is at.
Needs root, for the devices, and py-spy, which `scripts/setup dev` installs.

    python benchmarks/processor.py [--seeds N ...] [--quick]

What is measured already is not measured again, but with `--again`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from lab.cluster import Cluster
from lab.four_bars import (
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
from lab.race import SHARE, WORKERS, Kept, steady
from lab.runs import Processes, wait
from record import novels, table, write

# Seconds of training, and of looking at it.
TIMES, QUICK_TIMES = (40, 20), (15, 4)
LOOKS_PER_SECOND = 50
# Lines of metrics, one a second, before it counts: caches fill.
LINES_BEFORE = 6
TIMEOUT_SECONDS = 300.0

ARITHMETIC, UPDATE, BATCH, EXCHANGE, REST = (
    "forward, backward",
    "rows and update",
    "next batch",
    "exchange",
    "rest",
)
ROUNDS, GLOO = "threads of the rounds", "Gloo's threads"
PARTS = (ARITHMETIC, UPDATE, BATCH, EXCHANGE, REST, ROUNDS, GLOO)
# What the main thread is at, by the innermost function that one of these is a part of.
MARKS = {
    "_touch (thinwire/train/loop.py": BATCH,
    "thinwire/exchange/local.py": UPDATE,
    "thinwire/exchange/": EXCHANGE,
    "thinwire/transport/": EXCHANGE,
    "loss (thinwire/language_model.py": ARITHMETIC,
    "backward (torch/_tensor.py": ARITHMETIC,
}


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
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--quick", action="store_true", help="one case, some seconds, 10 k words")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    arguments = parser.parse_args()
    if py_spy() is None:
        sys.exit("this benchmark needs py-spy: scripts/setup dev, or pip install py-spy")
    name, cases, seeds, times = "processor", list(CASES), arguments.seeds, TIMES
    if arguments.quick:
        name, cases, seeds, times = "processor-quick", [CASES[-1]], [1], QUICK_TIMES
    data = arguments.data or novels(*([f"--vocab-size={QUICK_WORDS}"] if arguments.quick else []))
    kept = Kept(name, again=arguments.again)
    for seed in seeds:
        for case in cases:
            kept.measure(f"{case.name}/{seed}", partial(measure, case, seed, data, times))
    body = (
        f"Four devices of {SHARE} of a core and one thread each, settings of the four bars. "
        "Milliseconds of a\ncore that a step of a worker takes: threads as the kernel counts them, "
        "the main thread's divided\nby what py-spy found it at, "
        f"{LOOKS_PER_SECOND} times a second. Medians of the seeds {', '.join(map(str, seeds))}.\n\n"
        f"{table(row(case, kept.found) for case in cases)}\n"
        f"Measured at {kept.origins()}.\n"
    )
    write(name, "What processor time goes into", body, {"measurements": kept.found})


def row(case: Case, found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A case's medians."""
    runs = [run for name, run in found.items() if name.startswith(f"{case.name}/")]
    shares = {part: median(run["milliseconds"][part] for run in runs) for part in PARTS}
    totals = [sum(run["milliseconds"].values()) for run in runs]
    return {
        "bar": case.bar.title,
        "link": case.link,
        "sequences": str(case.batch),
        "s a step": f"{median(run['step_seconds'] for run in runs):.3f}",
        "wait, of the time": f"{median(run['waiting'] for run in runs):.2f}",
        "ms of a core": f"{median(totals):.1f} ({min(totals):.1f} to {max(totals):.1f})",
        **{part: f"{ms:.1f}" for part, ms in shares.items()},
    }


def measure(case: Case, seed: int, data: Path, times: tuple[int, int]) -> dict[str, Any]:
    """Train, look at the workers meanwhile, and tell what of a core a step of one of them took."""
    folder = Path(tempfile.mkdtemp())
    flags = [*COMMON, "--threads", "1", "--data.batch", str(case.batch)]
    flags += [*seconds_budget(times[0]), "--checkpoint.every_seconds", "1e9"]
    num_runs = 1 if case.bar.on_wire else case.bar.workers
    try:
        with Cluster(WORKERS, rate_of(case.link), SHARE) as cluster:
            flags += case.bar.settings(case.link)
            processes = start(case.bar, cluster, data, folder, flags, seed)
            look = Look(processes, folder, num_runs, times[1])
            wait(processes, folder, TIMEOUT_SECONDS, look.look, num_runs)
        runs = [steady(path.parent) for path in sorted(folder.glob("*/metrics.jsonl"))]
        shares = look.shares()
    finally:
        shutil.rmtree(folder)
    rate = sum(run["tokens_per_second"] for run in runs)
    step_seconds = WORKERS * case.batch * DATA.length / rate
    return {
        "step_seconds": step_seconds,
        "waiting": sum(run["waiting"] for run in runs),
        "milliseconds": {part: 1000 * share * step_seconds for part, share in shares.items()},
    }


class Look:
    """A look at what workers are at, for so many seconds in the midst of their training.

    `look` is to be called now and then.
    """

    def __init__(
        self, processes: Processes, folder: Path, num_runs: int, looking_seconds: int
    ) -> None:
        self._processes, self._folder = processes, folder
        self._num_runs, self._looking_seconds = num_runs, looking_seconds
        self._spies: Processes = []
        self._began = self._seconds = 0.0
        self._before: list[dict[str, float]] = []
        self._after: list[dict[str, float]] = []

    def look(self) -> None:
        """Begin, once all are under way; end, once py-spy has."""
        if not self._spies and self._under_way():
            self._before, self._began = self._thread_seconds(), monotonic()
            self._spies = [
                spy(process.pid, self._looking_seconds, self._file(process.pid))
                for process in self._processes
            ]
        elif self._spies and not self._after and all(s.poll() is not None for s in self._spies):
            self._after, self._seconds = self._thread_seconds(), monotonic() - self._began

    def shares(self) -> dict[str, float]:
        """Of a core, for each of `PARTS`: of the average worker."""
        if not self._after:
            sys.exit("the workers ended before py-spy did")
        total: dict[str, float] = defaultdict(float)
        for process, before, after in zip(self._processes, self._before, self._after, strict=True):
            found = main_thread(self._file(process.pid).read_text().splitlines())
            for kind, seconds in after.items():
                share = (seconds - before.get(kind, 0.0)) / self._seconds / len(self._processes)
                if kind:
                    total[kind] += share
                else:
                    for part, times in found.items():
                        total[part] += share * times / found.total()
        return {part: total[part] for part in PARTS}

    def _under_way(self) -> bool:
        files = list(self._folder.glob("*/metrics.jsonl"))
        lines = [file.read_text().count('"event": "train"') for file in files]
        return len(lines) == self._num_runs and min(lines) >= LINES_BEFORE

    def _thread_seconds(self) -> list[dict[str, float]]:
        return [thread_seconds(process.pid) for process in self._processes]

    def _file(self, pid: int) -> Path:
        return self._folder / f"{pid}.stacks"


def py_spy() -> str | None:
    """The command, of this environment or of the machine."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")


def spy(pid: int, seconds: int, file: Path) -> subprocess.Popen[bytes]:
    """Have py-spy write how often it found which functions at work, by thread."""
    command = [str(py_spy()), "record", "--pid", str(pid), "--duration", str(seconds)]
    command += ["--rate", str(LOOKS_PER_SECOND), "--nonblocking", "--threads"]
    return subprocess.Popen(
        [*command, "--format", "raw", "--output", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def main_thread(stacks: Iterable[str]) -> Counter[str]:
    """How often the main thread was at what, out of py-spy's lines: functions, `;`, and a count."""
    found: Counter[str] = Counter()
    for line in stacks:
        stack, _, times = line.rpartition(" ")
        thread, *functions = stack.split(";")
        if thread.endswith("MainThread"):
            found[at(functions)] += int(times)
    return found


def at(functions: Iterable[str]) -> str:
    """What these functions, the innermost last, are for."""
    for function in reversed(list(functions)):
        for mark, part in MARKS.items():
            if mark in function:
                return part
    return REST


def thread_seconds(pid: int) -> dict[str, float]:
    """On a core so far: of the threads of rounds and Gloo's, and, under "", of the main thread."""
    seconds: dict[str, float] = defaultdict(float)
    for thread in Path(f"/proc/{pid}/task").iterdir():
        kind = ROUNDS
        if thread.name == str(pid):
            kind = ""
        elif "gloo" in (thread / "comm").read_text():
            kind = GLOO
        seconds[kind] += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return seconds


if __name__ == "__main__":
    main()
