"""The paper's four bars and those beside them, and how each is measured.

A measurement is a job with a name, which `bars.py` keeps in its record: the setting, a plan for a
link, the speed of a bar, its race to the target, or, where that takes too long, its curve over
tokens and its pace, which is its speed with the batch of a race.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.lab.cluster import Cluster
from benchmarks.lab.gemm import gemm_flop_per_second
from benchmarks.lab.race import SHARE, TARGET, WORKERS, Point, reached, snapshots, steady
from benchmarks.lab.runs import (
    Command,
    CpuWatch,
    Processes,
    start_alone,
    start_async,
    start_together,
    thinwire,
    wait,
)
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus

# The first is the paper's balance of arithmetic to wire, about 900 FLOP a byte.
LINKS = ("300mbit", "1gbit", "20mbit")
SLOW_LINK = "20mbit"
CODEC = {"300mbit": "bf16", "1gbit": "bf16", "20mbit": "int4"}
# Of a synchronous exchange that does not hide the wire behind arithmetic.
PROMPT_CODEC = {"300mbit": "int8", "1gbit": "int8", "20mbit": "int4"}
NO_LINK = "none"
DATA = RunConfig().data
STEP_TOKENS = DATA.batch * DATA.length
# A race is run with one batch in all, for so early larger ones are worth few steps less.
RACE_BATCH = DATA.batch // WORKERS
# How long a speed is measured. A step with the full softmax takes 8 seconds; one in which all
# parameters travel takes minutes over 20 Mbit/s, and is counted in rounds of all workers, of which
# it takes many elsewhere: pushes come in bursts that gather and break up, over many steps.
SPEED_SECONDS, SLOW_LINK_SECONDS, NAIVE_SECONDS, QUICK_SECONDS = 20.0, 40.0, 60.0, 9.0
DENSE_ROUNDS, SLOW_DENSE_ROUNDS, LEAST_ROUNDS = 12, 2, 3
# Of a race. After each an asynchronous run takes a while to be under way again, so it has fewer.
SNAPSHOTS, ASYNC_SNAPSHOTS = 8, 4
CURVE_EVERY_SECONDS = 40.0
LONGEST_RACE_SECONDS = 1800.0
TIMEOUT_SECONDS = 5400.0
# Of every run: nothing but training, at rates that do not depend on how long it was planned.
COMMON = (
    *("--optim.schedule", "constant", "--metrics.every_seconds", "1"),
    *("--eval.every_seconds", "1e9", "--eval.tokens", "500"),
)


@dataclass(frozen=True)
class Bar:
    """A way to train.

    Attributes:
        name: on the command line and in charts.
        title: what it is.
        flags: its settings.
        tokens: enough of them to reach the target in a race.
        workers: how many train.
    """

    name: str
    title: str
    flags: str
    tokens: int
    workers: int = WORKERS

    @property
    def is_full(self) -> bool:
        """Whether every step computes on the whole vocabulary."""
        return "--loss.kind full" in self.flags

    @property
    def loss(self) -> str:
        """The loss's name."""
        return "full" if self.is_full else "sampled"

    @property
    def delay(self) -> str:
        """How many steps late its updates come; the plan knows one such number at a time."""
        return "1" if "--exchange.delay 1" in self.flags else "0"

    @property
    def plan(self) -> str:
        """The name of the plan in which it is."""
        return f"{self.loss}, a step late" if self.delay == "1" else self.loss

    @property
    def on_wire(self) -> bool:
        """Whether anything is exchanged."""
        return "--exchange" in self.flags

    @property
    def hides_the_wire(self) -> bool:
        """Whether messages travel while the next step computes."""
        return self.delay == "1" or "--exchange periodic" in self.flags

    @property
    def is_async(self) -> bool:
        """Whether a server, on a device of its own, holds the parameters."""
        return "--exchange async" in self.flags

    def settings(self, link: str) -> list[str]:
        """Its flags over this link."""
        codecs = CODEC if self.hides_the_wire else PROMPT_CODEC
        return self.flags.format(codec=codecs.get(link, "bf16")).split()


NAIVE = Bar("naive", "one worker, full softmax", "--loss.kind full", 120_000, workers=1)
ONE = Bar("one", "one worker, sampled", "", 140_000, workers=1)
DENSE = Bar(
    "dense",
    "four, standard asynchronous SGD",
    "--exchange async --select everything --loss.kind full --exchange.timeout_seconds 3600",
    300_000,
)
ASYNC = Bar("async", "four, sampled, async", "--exchange async --codec int4", 160_000)
SYNC = Bar("sync", "four, sampled, sync", "--exchange sync --codec {codec}", 140_000)
LATE = Bar(
    "late",
    "four, sampled, sync a step late",
    "--exchange sync --codec {codec} --exchange.delay 1",
    170_000,
)
PERIODIC = Bar(
    "periodic", "four, sampled, periodic", "--exchange periodic --codec {codec}", 150_000
)
ALONE = Bar("alone", "four that exchange nothing", "", 0)
BARS = (NAIVE, ONE, DENSE, ASYNC, SYNC, LATE, PERIODIC, ALONE)
QUICK_BARS, QUICK_WORDS = BARS[:4], 10_000
Case = tuple[Bar, str]
Found = Mapping[str, dict[str, Any]]
Jobs = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def cases(bars: Sequence[Bar], links: Sequence[str]) -> list[Case]:
    """Each bar over each link, but those that need none once."""
    here = [(bar, NO_LINK) for bar in bars if not bar.on_wire]
    return here + [(bar, link) for link in links for bar in bars if bar.on_wire]


# Jobs


def all_jobs(
    found: Found, data: Path, cases: Sequence[Case], seeds: Sequence[int], longest_seconds: float
) -> Jobs:
    """Every measurement's key, and how to make it; what was `found` so far decides on the rest.

    Standard asynchronous SGD is measured with the first seed alone, and so is what a bar with the
    full softmax reaches, which races only if its curve over tokens and its speed say that it will
    not take longer.
    """
    yield "setting", partial(measure_setting, data)
    for link in dict.fromkeys(link for _, link in cases if link != NO_LINK) or LINKS[:1]:
        for plan, bar in {bar.plan: bar for bar, _ in cases}.items():
            yield f"plan/{plan}/{link}", partial(measure_plan, bar, link, data)
    seeded = [(*case, seed) for seed in seeds for case in cases]
    for bar, link, seed in seeded:
        if bar is DENSE and seed != seeds[0]:
            continue
        budget = speed_budget(bar, link)
        yield key("speed", bar, link, seed), partial(measure_speed, bar, link, seed, data, budget)
        if bar is DENSE and link != SLOW_LINK:  # where a round takes minutes, once is enough
            pace = [*race_batch(bar), *rounds_budget(LEAST_ROUNDS, RACE_BATCH)]
            yield key("pace", bar, link, seed), partial(measure_speed, bar, link, seed, data, pace)
    for bar in dict.fromkeys(bar for bar, _ in cases if bar.is_full):
        yield f"curve/{bar.name}", partial(measure_curve, bar, seeds[0], data)
    for bar, link, seed in seeded:
        if bar.is_full and seed != seeds[0]:
            continue
        rate = race_rate(found, bar, link, seed)
        if bar is not ALONE and rate and seconds_by_curve(found, bar, rate) < longest_seconds:
            yield key("race", bar, link, seed), partial(measure_race, bar, link, seed, data, rate)


def quick_jobs(data: Path) -> Jobs:
    """The paper's four bars on a small scale, and one race."""
    over, rounds, seconds = LINKS[0], rounds_budget(LEAST_ROUNDS), seconds_budget(QUICK_SECONDS)
    yield "setting", partial(measure_setting, data)
    yield f"plan/{ASYNC.plan}/{over}", partial(measure_plan, ASYNC, over, data)
    for bar, link in cases(QUICK_BARS, [over]):
        budget = rounds if bar is DENSE else seconds
        yield key("speed", bar, link, 1), partial(measure_speed, bar, link, 1, data, budget)
    yield key("race", ASYNC, over, 1), partial(measure_race, ASYNC, over, 1, data, 5e3)


def key(kind: str, bar: Bar, link: str, seed: int | str) -> str:
    """Under which a measurement is kept."""
    return f"{kind}/{bar.name}/{link}/{seed}"


def speed_budget(bar: Bar, link: str) -> list[str]:
    """For how long to measure the speed of a bar."""
    if bar is DENSE:
        return rounds_budget(SLOW_DENSE_ROUNDS if link == SLOW_LINK else DENSE_ROUNDS)
    if bar is NAIVE:
        return seconds_budget(NAIVE_SECONDS)
    return seconds_budget(SLOW_LINK_SECONDS if link == SLOW_LINK else SPEED_SECONDS)


def seconds_budget(seconds: float) -> list[str]:
    """So many seconds of training."""
    return ["--seconds", str(seconds)]


def rounds_budget(rounds: int, batch: int = DATA.batch) -> list[str]:
    """So many steps of each of four workers, all of them recorded."""
    tokens = rounds * WORKERS * batch * DATA.length
    return ["--tokens", str(tokens), "--metrics.every_steps", "1"]


def race_batch(bar: Bar) -> list[str]:
    """The sequences of each worker in a race."""
    return ["--data.batch", str(RACE_BATCH if bar.workers > 1 else DATA.batch)]


def race_rate(found: Found, bar: Bar, link: str, seed: int) -> float:
    """Tokens/s to be expected in a race; where workers have a smaller batch there, about half.

    Over the slow link a third; 0: unknown.
    """
    if bar is DENSE:
        pace = found.get(key("pace", bar, link, seed), {"tokens_per_second": 0.0})
        return float(pace["tokens_per_second"])
    rate = found[key("speed", bar, link, seed)]["tokens_per_second"]
    return float(rate / (3 if link == SLOW_LINK else 2) if bar.workers > 1 else rate)


def seconds_by_curve(found: Found, bar: Bar, rate: float) -> float:
    """To the target at this rate, by the curve without links and shares; 0 where there is none."""
    curve = found.get(f"curve/{bar.name}")
    if curve is None:
        return 0.0
    point = reached(points_of(curve), TARGET)
    return point.tokens / rate if point else float("inf")


def points_of(measured: Mapping[str, Any]) -> list[Point]:
    """The curve of a measurement."""
    return [Point(*point) for point in measured["points"]]


def measure_setting(data: Path) -> dict[str, Any]:
    """The vocabulary, and what a device does in a second: matrix products of one thread."""
    torch.set_num_threads(1)
    words = Corpus.open(data).meta.vocab_size
    return {"data": data.name, "words": words, "flop_per_second": SHARE * gemm_flop_per_second()}


def measure_plan(bar: Bar, link: str, data: Path) -> dict[str, Any]:
    """What `thinwire plan` says on a device of every bar with this one's loss and delay."""
    options = ["--json", "--link", link, "--workers", WORKERS, "--threads", 1]
    options += ["--loss.kind", bar.loss, "--exchange.delay", bar.delay]
    with tempfile.TemporaryDirectory() as folder, Cluster(1, link, SHARE) as cluster:
        log = Path(folder) / "plan.log"
        wait([cluster.start(0, thinwire("plan", data, *options), log=log)], log.parent, 600.0)
        found: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return {name: found[name] for name in ("machine", "link_bytes_per_second", "forecasts")}


def measure_speed(
    bar: Bar, link: str, seed: int, data: Path, budget: Sequence[str]
) -> dict[str, Any]:
    """Tokens/s, bytes and waiting."""

    def read(runs: Sequence[Path]) -> dict[str, Any]:
        found = [steady(run) for run in runs]
        return {name: sum(part[name] for part in found) for name in found[0]}

    options = [*budget, "--checkpoint.every_seconds", "1e9"]
    return on_devices(bar, link, seed, data, options, read)


def measure_race(bar: Bar, link: str, seed: int, data: Path, rate: float) -> dict[str, Any]:
    """The speed and the curve of a run to the target, at about so many tokens a second."""

    def read(runs: Sequence[Path]) -> dict[str, Any]:
        return {"points": snapshots(runs[0], TARGET), **steady(runs[0])}

    every_seconds = bar.tokens / rate / (ASYNC_SNAPSHOTS if bar.is_async else SNAPSHOTS)
    options = race_options(bar, every_seconds)
    return on_devices(bar, link, seed, data, options, read)


def measure_curve(bar: Bar, seed: int, data: Path) -> dict[str, Any]:
    """The curve of the same algorithm on this machine as it is, without links and shares."""
    several = ["--workers", str(bar.workers), "--threads", "1"] if bar.workers > 1 else []
    options = [*several, *race_options(bar, CURVE_EVERY_SECONDS), *bar.settings(NO_LINK)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = thinwire("train", data, "--out", run, *COMMON, *options, "--seed", seed)
        subprocess.run(command, check=True)
        return {"points": snapshots(run, TARGET)}


def race_options(bar: Bar, every_seconds: float) -> list[str]:
    """The batch and the budget of a race, and what is kept of it."""
    every = ["--checkpoint.every_seconds", f"{every_seconds:.2f}", "--checkpoint.keep", "1000"]
    return [*race_batch(bar), "--tokens", str(bar.tokens), *every]


def on_devices(
    bar: Bar,
    link: str,
    seed: int,
    data: Path,
    options: Sequence[str],
    read: Callable[[Sequence[Path]], dict[str, Any]],
) -> dict[str, Any]:
    """Train on devices; what `read` makes of the runs, and what the devices were like."""
    folder = Path(tempfile.mkdtemp())
    flags = [*COMMON, "--threads", "1", *options, *bar.settings(link)]
    try:
        with Cluster(bar.workers + bar.is_async, rate_of(link), SHARE) as cluster:
            measured = cluster.measured_rate() if bar.on_wire else None
            processes = start(bar, cluster, data, folder, flags, seed)
            watch = CpuWatch(processes, folder)
            num_runs = 1 if bar.on_wire else bar.workers
            wait(processes, folder, TIMEOUT_SECONDS, watch.look, num_runs)
        runs = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
        found = read(runs)
    finally:
        shutil.rmtree(folder)
    shares = watch.shares()
    server = {"server_share": shares.pop(0)} if bar.is_async else {}
    return {**found, "link_bits_per_second": measured, "worker_shares": shares, **server}


def start(
    bar: Bar,
    cluster: Cluster,
    data: Path,
    folder: Path,
    flags: Sequence[str],
    seed: int,
    command: Command = thinwire,
) -> Processes:
    """Start its workers and, before them, its server."""
    if not bar.on_wire:
        return start_alone(cluster, bar.workers, data, folder, flags, seed, command)
    together = start_async if bar.is_async else start_together
    flags = [*flags, "--seed", str(seed)]
    return together(cluster, bar.workers, data, folder, flags, command=command)


def rate_of(link: str) -> str | None:
    """As `tc` takes it."""
    return None if link == NO_LINK else link
