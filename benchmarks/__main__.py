"""Remake the whole record: every benchmark, one after another, each in a process of its own.

A benchmark whose record was made by the code as it stands is skipped, so this can be stopped and
started again; what ran, at which commit, how long and how it ended is kept in results/all.json.
The long ones besides keep each of their measurements, and go on where they stopped; what older code
has measured is made anew. One that fails is reported and the rest goes on; the exit status is then
1. What each of them prints goes to a log in the cache.

    python -m benchmarks [--only NAME ...] [--again] [--list] [--quick]

`--quick` only tries every script, in some minutes: with its own `--quick`, on the beginning of each
corpus, with results in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from modulefinder import ModuleFinder
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.corpora import CACHE, fetched
from benchmarks.lab.cluster import cannot
from benchmarks.record.write import RESULTS, ROOT
from thinwire.report.figures import duration

# Lines of a corpus that `--quick` takes.
QUICK_LINES = {"train": 80_000, "valid": 200, "test": 200}
QUICK_TIMEOUT_SECONDS = 300.0
# A hang is a failure: several times what is expected, and a while to fetch and prepare text.
TIMES_EXPECTED, WHILE_SECONDS = 3, 900.0
DONE, STOPPED = "done", "stopped"
# Code that only forecasts execute, and code that only runs of several workers do.
PLAN = ("src/thinwire/plan", "src/thinwire/cli/plan.py")
SEVERAL = (
    *(f"src/thinwire/{part}" for part in ("parameter_server", "launch", "transport", "wire")),
    *(f"src/thinwire/cli/{part}.py" for part in ("serve", "work")),
)
# Scripts that the emulated devices run, which no other file imports.
DEVICES = ("benchmarks/lab/probe.py", "benchmarks/lab/relay.py", "benchmarks/rivals")
Entry = dict[str, Any]

console = Console(highlight=False)


@dataclass(frozen=True)
class Benchmark:
    """One part of the record.

    Attributes:
        name: of its results or, where it adds to another's, of its own.
        command: the script, as a module of `benchmarks`, and its arguments.
        minutes: that it takes on two cores with AVX-512.
        quick: with which arguments the script is only tried; none: it is not tried.
        needs_root: it emulates a cluster.
        resumes: it keeps its own measurements in results/NAME.json.
        several: it trains with several workers, as whatever needs root does.
        plans: it forecasts, too.
        measured_by: the module that decides what it measures; none: the script.
    """

    name: str
    command: str
    minutes: float
    quick: str = "--quick"
    needs_root: bool = False
    resumes: bool = False
    several: bool = False
    plans: bool = False
    measured_by: str = ""

    @property
    def module(self) -> str:
        """The script, without its arguments."""
        return self.command.split()[0]

    @property
    def code(self) -> list[str]:
        """Files and folders that decide what it measures."""
        parts = ["src", *imported(self.measured_by or self.module)]
        if self.needs_root:
            parts += DEVICES
        elif not self.several:
            parts += [f":(exclude){part}" for part in SEVERAL]
        return parts if self.plans else [*parts, *(f":(exclude){part}" for part in PLAN)]


def imported(module: str) -> list[str]:
    """The files of a module and of all that it imports of `benchmarks`, from the project's root."""
    script = ROOT / "benchmarks" / f"{module.replace('.', '/')}.py"
    finder = ModuleFinder([str(ROOT)])
    finder.run_script(str(script))
    found = (getattr(module, "__file__", None) for module in finder.modules.values())
    files = [Path(file) for file in found if file]
    return sorted(str(file.resolve().relative_to(ROOT)) for file in files)


SOAK_QUICK = "--exchange supervised --seeds 1 --faults 3 --tokens 60000 --minutes 2"
# What is worth its time. They report whatever they have ever measured, so more can
# be added by hand.
BARS = "questions.bars --corpus novels --longest 400"
RIVALS = "questions.rivals --corpus novels --longest 120"
NOVELS = "--corpus novels"
BENCHMARKS = (
    Benchmark("startup", "questions.startup", 0.5),
    Benchmark("prepare-novels", f"questions.prepare {NOVELS}", 2),
    Benchmark("limit-novels", f"questions.limit {NOVELS}", 4),
    Benchmark("evaluation-novels", f"questions.evaluation {NOVELS}", 4),
    Benchmark("losses", "questions.losses --stock-seconds 600", 25),
    Benchmark("losses-novels", f"questions.losses {NOVELS} --stock-seconds 600", 23),
    Benchmark("curve", "questions.curve --corpus novels", 0.1, quick=""),
    Benchmark("quality-novels", f"questions.quality {NOVELS}", 9),
    Benchmark("vocabulary", "questions.vocabulary", 5),
    Benchmark("ngram", "questions.ngram --seconds 120", 6),
    Benchmark("ngram-novels", f"questions.ngram {NOVELS} --seconds 120 600", 17),
    Benchmark("defaults-novels", f"questions.defaults {NOVELS} --tokens 250000", 6),
    Benchmark("models", "questions.models", 25),
    Benchmark("transformer", "questions.transformer", 60),
    Benchmark("bpe", "questions.bpe", 30),
    Benchmark("ngrams", "questions.ngrams", 10),
    Benchmark("adaptation", "questions.adaptation", 160, resumes=True),
    Benchmark("scoring", "questions.scoring", 10),
    Benchmark("rescoring", "questions.rescoring", 15),
    Benchmark("candidates", "questions.candidates", 2),
    Benchmark("cores-novels", f"questions.cores {NOVELS} --rounds 2", 6, several=True),
    Benchmark(
        "exchange-quality-novels",
        f"questions.exchange_quality {NOVELS} --seeds 3",
        39,
        resumes=True,
        several=True,
    ),
    Benchmark("learning", "questions.learning", 40, resumes=True, several=True),
    Benchmark("worth", "questions.worth", 110, needs_root=True, resumes=True, plans=True),
    Benchmark(
        "worth-novels",
        f"questions.worth {NOVELS} --seeds 1 --links 300mbit",
        12,
        quick="",
        needs_root=True,
        resumes=True,
        plans=True,
    ),
    Benchmark("soak", "faults.soak", 60, SOAK_QUICK, needs_root=True, resumes=True),
    Benchmark("exchange-novels", f"questions.exchange {NOVELS} --rounds 2", 23, needs_root=True),
    Benchmark("bars-novels", BARS, 112, needs_root=True, resumes=True, measured_by="lab.four_bars"),
    Benchmark(
        "forecasts",
        f"questions.bars {NOVELS} --plans",
        3,
        "--quick --plans",
        needs_root=True,
        plans=True,
        measured_by="lab.four_bars",
    ),
    Benchmark(
        "processor-novels", f"questions.processor {NOVELS}", 15, needs_root=True, resumes=True
    ),
    Benchmark(
        "round-trip-novels", f"questions.round_trip {NOVELS}", 6, needs_root=True, resumes=True
    ),
    Benchmark("rivals-novels", RIVALS, 77, "--quick --methods ddp", needs_root=True, resumes=True),
    Benchmark("beyond-novels", f"questions.beyond {NOVELS}", 1, several=True, plans=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--again", action="store_true", help="also what the present code has made")
    parser.add_argument("--list", action="store_true", help="print what there is, and run nothing")
    parser.add_argument("--quick", action="store_true", help="try every script, keep no results")
    arguments = parser.parse_args()
    chosen = [b for b in BENCHMARKS if not arguments.only or b.name in arguments.only]
    if arguments.list:
        show(chosen)
        return
    here = possible(chosen)
    if arguments.again and not arguments.quick:
        forget(here)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        failures = (try_all if arguments.quick else make_all)(here)
        sys.exit(int(failures > 0 or len(here) < len(chosen)))
    except KeyboardInterrupt:
        console.print("stopped; a run without --again goes on with what is missing")
        sys.exit(130)


def show(chosen: Sequence[Benchmark]) -> None:
    ledger = read_ledger()
    heads = ("name", "command", "minutes", "root", "record")
    found = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for benchmark in chosen:
        entry = ledger.get(benchmark.name, {})
        state = "made" if is_made(benchmark, ledger) else entry.get("status", "to be made")
        found.add_row(
            benchmark.name,
            benchmark.command,
            f"{benchmark.minutes:g}",
            "root" if benchmark.needs_root else "",
            "made by older code" if state == DONE else state,
        )
    console.print(found)
    console.print(about(chosen))


def about(benchmarks: Sequence[Benchmark]) -> str:
    """How many they are, and how long they take."""
    seconds = 60 * sum(benchmark.minutes for benchmark in benchmarks)
    number = "1 benchmark" if len(benchmarks) == 1 else f"{len(benchmarks)} benchmarks"
    return f"{number}, expected to take {duration(seconds)}"


def possible(benchmarks: Sequence[Benchmark]) -> list[Benchmark]:
    """Those that can be made on this machine; about the others it says why they cannot."""
    reason = cannot()
    for benchmark in benchmarks:
        if benchmark.needs_root and reason:
            console.print(f"{benchmark.name}: {reason}")
    return [benchmark for benchmark in benchmarks if not (benchmark.needs_root and reason)]


def make_all(chosen: Sequence[Benchmark]) -> int:
    """Make what is missing of the record; how many failed."""
    ledger = read_ledger()
    missing = [benchmark for benchmark in chosen if not is_made(benchmark, ledger)]
    console.print(about(missing) if missing else "the present code has made all of this")
    failures = 0
    with progress_bar() as progress:
        task = progress.add_task("", total=sum(benchmark.minutes for benchmark in missing))
        for benchmark in missing:
            progress.update(task, description=benchmark.name)
            commit, date = commit_of(benchmark), f"{datetime.now(timezone.utc):%Y-%m-%d}"
            timeout_seconds = TIMES_EXPECTED * 60 * benchmark.minutes + WHILE_SECONDS
            if is_outdated(benchmark, ledger):
                forget([benchmark])
            began, status = perf_counter() - seconds_before(benchmark, ledger), STOPPED
            try:
                status = run(benchmark, benchmark.command, {}, timeout_seconds)
            finally:
                seconds = round(perf_counter() - began)
                entry = {"commit": commit, "date": date, "seconds": seconds, "status": status}
                write_ledger(read_ledger() | {benchmark.name: entry})
            failures += status != DONE
            progress.advance(task, benchmark.minutes)
    return failures


def try_all(chosen: Sequence[Benchmark]) -> int:
    """Run every script for a short while, on little text, and keep nothing; how many failed."""
    tried = [benchmark for benchmark in chosen if benchmark.quick]
    failures = 0
    with tempfile.TemporaryDirectory() as folder, progress_bar() as progress:
        results, cache = Path(folder) / "results", Path(folder) / "cache"
        results.mkdir()
        shorten_texts(cache / "thinwire" / "benchmarks")
        environment = {"THINWIRE_RESULTS": str(results), "XDG_CACHE_HOME": str(cache)}
        task = progress.add_task("", total=len(tried))
        for benchmark in tried:
            progress.update(task, description=benchmark.name)
            command = f"{benchmark.module} {benchmark.quick}"
            status = run(benchmark, command, environment, QUICK_TIMEOUT_SECONDS)
            failures += status != DONE
            progress.advance(task)
    return failures


def shorten_texts(cache: Path) -> None:
    """The beginning of the verse where `corpora` keeps it, and in place of other texts."""
    with fetched("poetry").open(encoding="utf-8") as lines:
        for split, num_lines in QUICK_LINES.items():
            text = "".join(line for line, _ in zip(lines, range(num_lines), strict=False))
            names = ("poetry", "shakespeare", "kjv") if split == "train" else ()
            for path in [f"novels-text/{split}.txt", *(f"{n}-text/{n}.txt" for n in names)]:
                (cache / path).parent.mkdir(parents=True, exist_ok=True)
                (cache / path).write_text(text, encoding="utf-8")


def run(
    benchmark: Benchmark, command: str, environment: Mapping[str, str], timeout_seconds: float
) -> str:
    """Run a script, say how it ended and how long that took, and return the former."""
    log = CACHE / "logs" / f"{benchmark.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = perf_counter()
    status = ended(command, environment, log, timeout_seconds)
    console.print(f"{benchmark.name}: {status}, {duration(perf_counter() - began)}")
    if status != DONE:
        last_lines = log.read_text(errors="replace").splitlines()[-15:]
        console.print("\n".join([*last_lines, f"({log})"]), markup=False)
    return status


def ended(command: str, environment: Mapping[str, str], log: Path, timeout_seconds: float) -> str:
    """How a script ended: `DONE`, or what was wrong. Its processes do not outlive this."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(f"benchmarks.{command}")],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return f"not done after {duration(timeout_seconds)}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return f"failed with exit status {status}" if status else DONE


def progress_bar() -> Progress:
    columns = (BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=console)


# What has been made


def is_made(benchmark: Benchmark, ledger: Mapping[str, Entry]) -> bool:
    """Whether the code as it stands has made this part of the record, from here or by hand."""
    entry, results = ledger.get(benchmark.name), RESULTS / f"{benchmark.name}.json"
    if entry is not None:
        return entry["status"] == DONE and is_unchanged(benchmark, entry["commit"])
    if benchmark.resumes or not results.exists():
        return False
    return is_unchanged(benchmark, json.loads(results.read_text())["machine"]["commit"])


def is_unchanged(benchmark: Benchmark, commit: str) -> bool:
    """Whether a benchmark's code is that of the commit."""
    return not commit.endswith("-dirty") and not git("diff", commit, "--", *benchmark.code)


def is_outdated(benchmark: Benchmark, ledger: Mapping[str, Entry]) -> bool:
    """Whether older code has made its measurements, so that a run must not go on from them."""
    entry = ledger.get(benchmark.name, {})
    return "commit" in entry and not is_unchanged(benchmark, entry["commit"])


def seconds_before(benchmark: Benchmark, ledger: Mapping[str, Entry]) -> float:
    """What runs that did not end have spent on measurements that this one goes on from."""
    entry = ledger.get(benchmark.name, {})
    goes_on = benchmark.resumes and not is_outdated(benchmark, ledger)
    return entry.get("seconds", 0.0) if goes_on else 0.0


def commit_of(benchmark: Benchmark) -> str:
    """The present commit, marked where the benchmark's code is not what was committed."""
    changed = git("status", "--porcelain", "--", *benchmark.code)
    return git("rev-parse", "--short", "HEAD").strip() + ("-dirty" if changed else "")


def git(*arguments: str) -> str:
    """The output of a command; where it fails, a line that no such command prints."""
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else "unknown-dirty\n"


def forget(chosen: Sequence[Benchmark]) -> None:
    """Have these made again, by this run or, if it is stopped, by the next."""
    for benchmark in chosen:
        if benchmark.resumes:
            (RESULTS / f"{benchmark.name}.json").unlink(missing_ok=True)
    write_ledger(read_ledger() | {b.name: {"status": "to be made again"} for b in chosen})


def read_ledger() -> dict[str, Entry]:
    file = RESULTS / "all.json"
    return json.loads(file.read_text()) if file.exists() else {}


def write_ledger(ledger: Mapping[str, Entry]) -> None:
    file = RESULTS / "all.json"
    RESULTS.mkdir(exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(ledger, indent=1) + "\n")
    os.replace(temporary, file)


if __name__ == "__main__":
    main()
