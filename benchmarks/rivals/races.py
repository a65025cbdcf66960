"""The races between thinwire and its rivals, and what has to be known before them.

First a sweep over optimisers and rates, then a curve over tokens, both by processes of this machine
without links and shares; then the races on emulated devices. A rival that would take too long to
the target runs for its speed alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks.lab.cluster import Cluster
from benchmarks.lab.race import SHARE, TARGET, WORKERS, Point, reached, snapshots, steady
from benchmarks.lab.runs import PORT, Processes, start_async, start_together, wait
from benchmarks.record.kept import Kept
from thinwire.plan.machine import parse_rate
from thinwire.runs.metrics import read_metrics

TRAIN = "benchmarks.rivals.train"
# Over each link, the exchanges of thinwire that suit it; `late`: with a delay of one step.
LINKS = {
    "1gbit": ("sync int8", "sync bf16 late", "async int4"),
    "300mbit": ("sync int8", "sync bf16 late", "async int4"),
    "100mbit": ("sync int8", "sync int8 late", "async int4"),
    "20mbit": ("sync int4 late", "periodic int4"),
}
TITLES = {
    "ddp": "DDP",
    "ddp-bf16": "DDP, bf16 hook",
    "powersgd": "DDP, PowerSGD hook",
    "diloco": "DiLoCo",
    "sparta": "SPARTA",
}
# Every method has thinwire's sampled loss. With the full one the arithmetic takes so long that what
# travels hardly matters, and DDP stands for all.
LOSSES = {method: ("sampled", "full") if method == "ddp" else ("sampled",) for method in TITLES}
BATCH, LENGTH = 16, 35
STEP_TOKENS = WORKERS * BATCH * LENGTH
# PyTorch suggests a tenth of all steps, and the target takes some hundred; it demands 2 at least.
POWERSGD_DENSE_STEPS, LEAST_DENSE_STEPS = 10, 2
DILOCO_STEPS, SHORT_DILOCO_STEPS = 100, 10

# The sweeps. What the hooks approximate is plain data parallelism, so its rates serve them too.
FAMILY = {method: method if method in ("diloco", "sparta") else "ddp" for method in TITLES}
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "ddp": {"adam": (2e-3, 5e-3), "adagrad": (0.05, 0.1, 0.2)},
    "diloco": {"adamw": (2e-3, 5e-3, 1e-2, 2e-2)},
    "sparta": {"adam": (1e-3, 2e-3, 5e-3)},
}
SWEEP_TOKENS = 100_000

# The curves over tokens: a little more than the target takes, but SPARTA, which is far from it
# there; DiLoCo's are two rounds and a little.
CURVE_TOKENS = {
    "ddp": 110_000,
    "ddp-bf16": 110_000,
    "powersgd": 150_000,
    "diloco": 460_000,
    "sparta": 200_000,
}
CURVE_SNAPSHOTS = (40_000, 60_000, 80_000, 100_000, 125_000, 150_000, 200_000, 250_000, 350_000)

# The races.
OUR_TOKENS, OUR_SNAPSHOT_SECONDS = 240_000, 4.0
RACE_SNAPSHOTS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.1)  # of the tokens to the target
LONGEST_RACE_SECONDS = 1800.0
SPEED_SECONDS = 40.0
TIMEOUT_SECONDS = 5400.0

# `--quick`: one link, and a target that is near.
QUICK_LINK, QUICK_TARGET, QUICK_TOKENS, QUICK_SECONDS, QUICK_LR = (
    "300mbit",
    500.0,
    60_000,
    15.0,
    2e-3,
)


@dataclass(frozen=True)
class Choice:
    """Which part of the whole is measured and shown."""

    links: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    longest_seconds: float
    quick: bool

    @property
    def target(self) -> float:
        """The perplexity at which a race is over."""
        return QUICK_TARGET if self.quick else TARGET

    def losses(self, method: str) -> Sequence[str]:
        """With which a rival is tried."""
        return LOSSES[method][:1] if self.quick else LOSSES[method]


def measure(kept: Kept, data: Path, choice: Choice) -> None:
    """Make all measurements that are missing: sweeps, curves over tokens, races."""
    rivals = [(method, loss) for method in choice.methods for loss in choice.losses(method)]
    if not choice.quick:
        for family, loss in dict.fromkeys((FAMILY[method], loss) for method, loss in rivals):
            for optimizer, lr in rates_to_try(kept, family, loss):
                name = f"sweep/{family}/{loss}/{optimizer}/{lr:g}"
                kept.measure(name, partial(try_rate, data, family, loss, optimizer, lr))
        for method, loss in rivals:
            kept.measure(f"curve/{method}/{loss}", partial(curve, kept, data, method, loss))
    for link in choice.links:
        for seed in choice.seeds:
            for exchange in LINKS[link]:
                ours = partial(race_ours, data, exchange, link, seed, choice)
                kept.measure(race(exchange, "sampled", link, seed), ours)
            for method, loss in rivals:
                if loss == "sampled" or seed == choice.seeds[0]:
                    theirs = partial(race_rival, kept, data, method, loss, link, seed, choice)
                    kept.measure(race(method, loss, link, seed), theirs)


# The sweeps and the curves: processes of this machine, without links and shares


def rates_to_try(kept: Kept, family: str, loss: str) -> Iterator[tuple[str, float]]:
    """Optimisers and rates; with the full loss only the optimiser that did best with the other."""
    best, _ = chosen(kept, family, "sampled")
    for optimizer, rates in RATES[family].items():
        if loss == "sampled" or optimizer == best:
            yield from ((optimizer, lr) for lr in rates)


def try_rate(data: Path, family: str, loss: str, optimizer: str, lr: float) -> dict[str, Any]:
    """The perplexity after a short run."""
    flags = rival_flags(loss, 1, (optimizer, lr), SWEEP_TOKENS)
    with trained_here(family, data, flags) as run:
        return {"ppl": snapshots(run)[-1].ppl}


def chosen(kept: Kept, method: str, loss: str) -> tuple[str, float]:
    """The optimiser and the rate that did best in the sweep."""
    family = FAMILY[method]
    prefix = f"sweep/{family}/{loss}/"
    tried = {name: found["ppl"] for name, found in kept.found.items() if name.startswith(prefix)}
    if not tried:
        return next(iter(RATES[family])), QUICK_LR
    optimizer, lr = min(tried, key=lambda name: tried[name]).removeprefix(prefix).split("/")
    return optimizer, float(lr)


def curve(kept: Kept, data: Path, method: str, loss: str) -> dict[str, Any]:
    """Perplexity over tokens, and what a device has sent when the target is reached."""
    tokens, rate = CURVE_TOKENS[method], chosen(kept, method, loss)
    flags = rival_flags(loss, 1, rate, tokens, CURVE_SNAPSHOTS)
    with trained_here(method, data, flags) as run:
        points, lines = snapshots(run, TARGET), read_metrics(run)
    found: dict[str, Any] = {"points": points}
    if at := reached(points, TARGET):
        counted = (line for line in lines if "bytes_sent" in line)
        sent = next(line["bytes_sent"] for line in counted if line["tokens"] >= at.tokens)
        found["bytes_to_target"] = sent / WORKERS
    return found


@contextmanager
def trained_here(method: str, data: Path, flags: Sequence[str]) -> Iterator[Path]:
    """The folder of a rival's run of as many processes as there are devices."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(WORKERS), "-m", TRAIN, method, str(data), *flags]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        subprocess.run([*command, "--out", str(run)], env=environment, check=True)
        yield run


def rival_flags(
    loss: str,
    seed: int,
    rate: tuple[str, float],
    tokens: int,
    points: Sequence[int] = (),
    **others: float,
) -> list[str]:
    """The arguments of `rivals/train.py`."""
    optimizer, lr = rate
    flags: dict[str, object] = {"loss": loss, "seed": seed, "optimizer": optimizer, "lr": lr}
    flags |= {"tokens": tokens, "batch": BATCH, **others}
    told = [str(part) for n, v in flags.items() for part in (f"--{n.replace('_', '-')}", v)]
    return [*told, "--snapshots", *map(str, points)]


# The races: on emulated devices


def race(name: str, loss: str, link: str, seed: int) -> str:
    """Under which key a race is kept."""
    return f"race/{name}/{loss}/{link}/{seed}"


def race_ours(data: Path, exchange: str, link: str, seed: int, choice: Choice) -> dict[str, Any]:
    """thinwire's run towards the target."""
    kind, codec, *late = exchange.split()
    settings = {
        "exchange": kind,
        "codec": codec,
        "exchange.delay": len(late),
        "seed": seed,
        "tokens": QUICK_TOKENS if choice.quick else OUR_TOKENS,
        "threads": 1,
        "data.batch": BATCH,
        "optim.schedule": "constant",
        "eval.every_seconds": 1e9,
        "eval.tokens": 500,
        "checkpoint.every_seconds": OUR_SNAPSHOT_SECONDS,
        "checkpoint.keep": 1000,
        "metrics.every_seconds": 1.0,
    }
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    start = start_async if kind == "async" else start_together

    def begin(cluster: Cluster, folder: Path) -> Processes:
        return start(cluster, WORKERS, data, folder, flags)

    with trained_there(WORKERS + (kind == "async"), link, begin) as (run, rate):
        return {"link": rate, "points": snapshots(run, choice.target), **steady(run)}


def race_rival(
    kept: Kept, data: Path, method: str, loss: str, link: str, seed: int, choice: Choice
) -> dict[str, Any]:
    """A rival's run: to the target or, where that takes too long, for its speed alone."""
    rate, target = chosen(kept, method, loss), target_of(kept, method, loss)
    far = forecast_seconds(kept, method, loss, link) > choice.longest_seconds
    if loss == "full" or target is None or far:
        dense_steps, inner_steps = LEAST_DENSE_STEPS, SHORT_DILOCO_STEPS
        seconds = QUICK_SECONDS if choice.quick else SPEED_SECONDS
        budget: dict[str, Any] = {"tokens": 10**9, "seconds": seconds}
    else:
        dense_steps, inner_steps = POWERSGD_DENSE_STEPS, DILOCO_STEPS
        points = [ceil(part * target.tokens) for part in RACE_SNAPSHOTS]
        budget = {"tokens": points[-1], "points": points}
    flags = rival_flags(
        loss, seed, rate, dense_steps=dense_steps, inner_steps=inner_steps, **budget
    )

    def begin(cluster: Cluster, folder: Path) -> Processes:
        return start_rival(cluster, method, data, folder, flags)

    with trained_there(WORKERS, link, begin) as (run, measured):
        pace = diloco_pace(run, inner_steps) if method == "diloco" else steady(run)
        curve = snapshots(run, choice.target) if "points" in budget else []
        return {"link": measured, "points": curve, **pace}


@contextmanager
def trained_there(
    devices: int, link: str, begin: Callable[[Cluster, Path], Processes]
) -> Iterator[tuple[Path, float]]:
    """The folder of a run on emulated devices, and the bit/s that their link was found to have."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Cluster(devices, link, share=SHARE) as cluster:
            rate = cluster.measured_rate()
            wait(begin(cluster, folder), folder, TIMEOUT_SECONDS, num_runs=1)
        yield folder / "run", rate


def start_rival(
    cluster: Cluster, method: str, data: Path, folder: Path, flags: Sequence[str]
) -> Processes:
    """One process a device, as torchrun would start them."""
    command = [sys.executable, "-m", TRAIN, method, str(data), "--out", str(folder / "run"), *flags]
    processes = []
    for rank in range(WORKERS):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(WORKERS),
            "MASTER_ADDR": cluster.address(0),
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": cluster.interface(rank),
        }
        processes.append(cluster.start(rank, command, environment, folder / f"{rank}.log"))
    return processes


def diloco_pace(run: Path, inner_steps: int) -> dict[str, float]:
    """Its speed with rounds of the length that is recommended, from a run of whole rounds."""
    last = [line for line in read_metrics(run) if line["event"] == "train"][-1]
    rounds = last["step"] / inner_steps
    local_seconds = (last["seconds"] - last["exchange_seconds"]) / last["step"]
    outer_seconds = last["exchange_seconds"] / rounds
    round_seconds = DILOCO_STEPS * local_seconds + outer_seconds
    return {
        "tokens_per_second": DILOCO_STEPS * STEP_TOKENS / round_seconds,
        "step_bytes": last["bytes_sent"] / WORKERS / rounds / DILOCO_STEPS,
        "waiting": outer_seconds / round_seconds,
    }


def target_of(kept: Kept, method: str, loss: str) -> Point | None:
    """Where the curve over tokens reaches the target."""
    return reached(curve_points(kept, method, loss), TARGET)


def curve_points(kept: Kept, method: str, loss: str) -> list[Point]:
    """A rival's curve over tokens; empty: not measured."""
    found = kept.found.get(f"curve/{method}/{loss}", {"points": []})
    return [Point(*point) for point in found["points"]]


def forecast_seconds(kept: Kept, method: str, loss: str, link: str) -> float:
    """About how long a race would take: the arithmetic, and then the wire."""
    target = target_of(kept, method, loss)
    if target is None:
        return float("inf")
    slower = (os.cpu_count() or 1) / (WORKERS * SHARE)
    found = kept.found[f"curve/{method}/{loss}"]
    return target.seconds * slower + float(found["bytes_to_target"]) / parse_rate(link)
