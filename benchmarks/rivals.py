"""What would people use instead of thinwire, and how does it do on slow links?

Four devices of 0.4 of a core each, with links of a given rate (needs root), train the same model
from the same weights on the same batches. thinwire runs with the exchange that suits the link; a
rival is an ordinary PyTorch loop (rival/train.py) around DistributedDataParallel, its bf16 or
PowerSGD hook, DiLoCo or SPARTA, with PyTorch's full softmax or thinwire's sampled one, and with the
optimiser and the rate that did best in a sweep. After a warm-up all rates stay as they are, so that
perplexity over tokens does not depend on where a run was to end.

    python benchmarks/rivals.py [--links RATE ...] [--methods NAME ...] [--seeds N ...] [--quick]

What is measured already is not measured again, but with `--again`; `--report` measures nothing.
"""

from __future__ import annotations

import argparse
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
from statistics import median
from typing import Any

from lab.cluster import Cluster
from lab.race import SHARE, TARGET, WORKERS, Kept, Point, reached, snapshots, steady
from lab.runs import PORT, Processes, start_async, start_together, wait
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from record import novels, spread, table, write

from thinwire.plan.machine import parse_rate
from thinwire.report.palette import LIGHT
from thinwire.train.metrics import read_metrics

TRAIN = Path(__file__).with_name("rival") / "train.py"
# Over each link, the exchanges of thinwire that suit it.
LINKS = {
    "1gbit": ("sync fp32", "async fp32"),
    "300mbit": ("sync bf16", "async fp32"),
    "100mbit": ("sync int8",),
    "20mbit": ("periodic int4",),
}
TITLES = {
    "ddp": "DDP",
    "ddp-bf16": "DDP, bf16 hook",
    "powersgd": "DDP, PowerSGD hook",
    "diloco": "DiLoCo",
    "sparta": "SPARTA",
}
LOSSES = ("sampled", "full")
BATCH, LENGTH = 16, 35
STEP_TOKENS = WORKERS * BATCH * LENGTH
# PyTorch suggests a tenth of all steps, and the target takes some hundred; it demands 2 at least.
POWERSGD_DENSE_STEPS, LEAST_DENSE_STEPS = 10, 2
DILOCO_STEPS, SHORT_DILOCO_STEPS = 100, 10

# The sweeps. What the hooks approximate is plain data parallelism, so its rates serve them too.
FAMILY = {method: method if method in ("diloco", "sparta") else "ddp" for method in TITLES}
RATES = {
    "ddp": {"adam": (1e-3, 2e-3, 5e-3), "adagrad": (0.05, 0.1)},
    "diloco": {"adamw": (1e-3, 2e-3, 5e-3)},
    "sparta": {"adam": (1e-3, 2e-3, 5e-3)},
}
SWEEP_TOKENS = 100_000

# The curves over tokens.
CURVE_TOKENS = {"sampled": 300_000, "full": 200_000}
CURVE_SNAPSHOTS = (20_000, 40_000, 60_000, 80_000, 100_000, 125_000, 150_000, 200_000, 250_000)

# The races.
OUR_TOKENS, OUR_SNAPSHOT_SECONDS = 300_000, 5.0
RACE_SNAPSHOTS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.1)  # of the tokens to the target
LONGEST_RACE_SECONDS = 1800.0
SPEED_SECONDS = {"1gbit": 40.0, "300mbit": 60.0, "100mbit": 100.0, "20mbit": 270.0}
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

    @property
    def losses(self) -> Sequence[str]:
        """Of the rivals."""
        return LOSSES[:1] if self.quick else LOSSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS), metavar="RATE")
    parser.add_argument(
        "--methods", nargs="+", choices=TITLES, default=list(TITLES), metavar="NAME"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument(
        "--longest",
        type=float,
        default=LONGEST_RACE_SECONDS,
        metavar="SECONDS",
        help="rivals that would need more to the target are run for their speed alone",
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes, in a file of its own")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    parser.add_argument("--report", action="store_true", help="only make tables and plots anew")
    arguments = parser.parse_args()
    links, seeds, quick = arguments.links, arguments.seeds, arguments.quick
    if quick:
        links, seeds = [QUICK_LINK], seeds[:1]
    choice = Choice(links, arguments.methods, seeds, arguments.longest, quick)
    kept = Kept("rivals-quick" if quick else "rivals", again=arguments.again)
    if not arguments.report:
        measure(kept, arguments.data or novels(), choice)
    write_report(kept, choice)


def measure(kept: Kept, data: Path, choice: Choice) -> None:
    """Make all measurements that are missing: sweeps, curves over tokens, races."""
    rivals = [(method, loss) for loss in choice.losses for method in choice.methods]
    if not choice.quick:
        for family, loss in dict.fromkeys(swept(*rival) for rival in rivals):
            for optimizer, rates in RATES[family].items():
                for lr in rates:
                    name = f"sweep/{family}/{loss}/{optimizer}/{lr:g}"
                    kept.measure(name, partial(try_rate, data, family, loss, optimizer, lr))
        for method, loss in dict.fromkeys(curve_of(*rival) for rival in rivals):
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


def swept(method: str, loss: str) -> tuple[str, str]:
    """Whose sweep a method follows: only DDP, for it is cheap there, has one with the full loss."""
    family = FAMILY[method]
    return family, loss if family == "ddp" else "sampled"


def try_rate(data: Path, family: str, loss: str, optimizer: str, lr: float) -> dict[str, Any]:
    """The perplexity after a short run."""
    flags = rival_flags(loss, 1, (optimizer, lr), SWEEP_TOKENS)
    with trained_here(family, data, flags) as run:
        return {"ppl": snapshots(run)[-1].ppl}


def chosen(kept: Kept, method: str, loss: str) -> tuple[str, float]:
    """The optimiser and the rate that did best in the sweep."""
    family, loss = swept(method, loss)
    prefix = f"sweep/{family}/{loss}/"
    tried = {name: found["ppl"] for name, found in kept.found.items() if name.startswith(prefix)}
    if not tried:
        return next(iter(RATES[family])), QUICK_LR
    optimizer, lr = min(tried, key=lambda name: tried[name]).removeprefix(prefix).split("/")
    return optimizer, float(lr)


def curve_of(method: str, loss: str) -> tuple[str, str]:
    """Whose curve over tokens stands for a rival's: rounding to bf16 is not worth a full one."""
    return ("ddp" if (method, loss) == ("ddp-bf16", "full") else method), loss


def curve(kept: Kept, data: Path, method: str, loss: str) -> dict[str, Any]:
    """Perplexity over tokens, and what a device has sent when the target is reached."""
    flags = rival_flags(loss, 1, chosen(kept, method, loss), CURVE_TOKENS[loss], CURVE_SNAPSHOTS)
    with trained_here(method, data, flags) as run:
        points, lines = snapshots(run), read_metrics(run)
    found: dict[str, Any] = {"points": points}
    if at := reached(points, TARGET):
        sent = next(line["bytes_sent"] for line in lines if line.get("tokens", 0) >= at.tokens)
        found["bytes_to_target"] = sent / WORKERS
    return found


@contextmanager
def trained_here(method: str, data: Path, flags: Sequence[str]) -> Iterator[Path]:
    """The folder of a rival's run of as many processes as there are devices."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(WORKERS), str(TRAIN), method, str(data), *flags]
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
    """What rival/train.py is told."""
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
    kind, codec = exchange.split()
    settings = {
        "exchange": kind,
        "codec": codec,
        "seed": seed,
        "tokens": QUICK_TOKENS if choice.quick else OUR_TOKENS,
        "threads": 1,
        "data.batch": BATCH,
        "optim.schedule": "constant",
        "eval.every_seconds": 1e9,
        "eval.tokens": 2000,
        "checkpoint.every_seconds": OUR_SNAPSHOT_SECONDS,
        "checkpoint.keep": 1000,
        "metrics.every_seconds": 1.0,
    }
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    start = start_async if kind == "async" else start_together

    def begin(cluster: Cluster, folder: Path) -> Processes:
        return start(cluster, WORKERS, data, folder, flags)

    with trained_there(WORKERS + (kind == "async"), link, begin) as (run, rate):
        return {"link": rate, "points": snapshots(run), **steady(run)}


def race_rival(
    kept: Kept, data: Path, method: str, loss: str, link: str, seed: int, choice: Choice
) -> dict[str, Any]:
    """A rival's run: to the target or, where that takes too long, for its speed alone."""
    rate, target = chosen(kept, method, loss), target_of(kept, method, loss)
    far = forecast_seconds(kept, method, loss, link) > choice.longest_seconds
    if loss == "full" or target is None or far:
        dense_steps, inner_steps = LEAST_DENSE_STEPS, SHORT_DILOCO_STEPS
        seconds = QUICK_SECONDS if choice.quick else SPEED_SECONDS[link]
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
        curve = snapshots(run) if "points" in budget else []
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
            wait(begin(cluster, folder), folder, TIMEOUT_SECONDS)
        yield folder / "run", rate


def start_rival(
    cluster: Cluster, method: str, data: Path, folder: Path, flags: Sequence[str]
) -> Processes:
    """One process a device, as torchrun would start them."""
    command = [sys.executable, str(TRAIN), method, str(data), "--out", str(folder / "run"), *flags]
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
    found = kept.found.get("curve/{}/{}".format(*curve_of(method, loss)), {"points": []})
    return [Point(*point) for point in found["points"]]


def forecast_seconds(kept: Kept, method: str, loss: str, link: str) -> float:
    """About how long a race would take: the arithmetic, and then the wire."""
    target = target_of(kept, method, loss)
    if target is None:
        return float("inf")
    slower = (os.cpu_count() or 1) / (WORKERS * SHARE)
    found = kept.found["curve/{}/{}".format(*curve_of(method, loss))]
    return target.seconds * slower + found["bytes_to_target"] / parse_rate(link)


# The report


@dataclass(frozen=True)
class Row:
    """A system over one link.

    Attributes:
        method: a rival's; None: this is thinwire.
        rates: tokens/s, by seed.
        step_bytes: that a device sends in a step.
        finishes: where the target was reached, by seed; it may be that it was not.
        curve: perplexity over time, of the first seed.
        predicted: the seconds follow from a curve over tokens and the tokens/s.
    """

    title: str
    method: str | None
    loss: str
    rates: list[float]
    step_bytes: float
    finishes: list[Point]
    curve: list[Point]
    predicted: bool = False

    @property
    def rate(self) -> float:
        """Tokens/s."""
        return median(self.rates)

    @property
    def seconds(self) -> float:
        """To the target; infinite if it was not reached or is not known."""
        return median(p.seconds for p in self.finishes) if self.finishes else float("inf")


def rows_of(kept: Kept, choice: Choice, link: str) -> list[Row]:
    """What is known of a link, thinwire first, and the sooner first among the rivals."""
    ours = [(f"thinwire {exchange}", None, exchange, "sampled") for exchange in LINKS[link]]
    theirs = [(TITLES[method], method, method, loss) for method in TITLES for loss in choice.losses]
    rows = []
    for title, method, name, loss in ours + theirs:
        prefix = race(name, loss, link, 0).removesuffix("0")
        runs = [found for key, found in sorted(kept.found.items()) if key.startswith(prefix)]
        if runs:
            rows.append(row_of(kept, choice, link, title, method, loss, runs))
    return sorted(rows, key=lambda row: (row.method is not None, row.seconds))


def row_of(
    kept: Kept,
    choice: Choice,
    link: str,
    title: str,
    method: str | None,
    loss: str,
    runs: Sequence[dict[str, Any]],
) -> Row:
    """The runs of one system over one link, one a seed."""
    rates = [run["tokens_per_second"] for run in runs]
    curves = [[Point(*point) for point in run["points"]] for run in runs]
    predicted = method is not None and not curves[0]
    if method is not None and predicted:
        curves = [at_pace(kept, method, loss, link, median(rates))]
    finishes = [p for points in curves if (p := reached(points, choice.target))]
    step_bytes = median(run["step_bytes"] for run in runs)
    return Row(title, method, loss, rates, step_bytes, finishes, curves[0], predicted)


def at_pace(kept: Kept, method: str, loss: str, link: str, rate: float) -> list[Point]:
    """A rival's curve over tokens, had it been trained at so many tokens/s over this link.

    PowerSGD's first steps go as DDP's do, whose rate must be known.
    """
    dense_tokens, dense_rate = 0, rate
    if method == "powersgd":
        dense = [v for k, v in kept.found.items() if k.startswith(f"race/ddp/{loss}/{link}/")]
        if not dense:
            return []
        dense_tokens = POWERSGD_DENSE_STEPS * STEP_TOKENS
        dense_rate = median(run["tokens_per_second"] for run in dense)

    def seconds(tokens: int) -> float:
        warm = min(tokens, dense_tokens)
        return warm / dense_rate + (tokens - warm) / rate

    points = curve_points(kept, method, loss)
    return [Point(point.tokens, seconds(point.tokens), point.ppl) for point in points]


def write_report(kept: Kept, choice: Choice) -> None:
    """Tables, the sentences about who wins, and a plot for each link."""
    links = {link: rows for link in choice.links if (rows := rows_of(kept, choice, link))}
    rows = [line for link, found in links.items() for line in lines_of(link, found, choice)]
    wins = [line for link, found in links.items() for line in rivals_ahead(link, found)]
    for link, found in links.items():
        plot(kept.file.with_name(f"{kept.file.stem}-{link}.png"), link, found, choice)
    body = (
        f"{WORKERS} devices of {SHARE} of a core, {BATCH} sequences of {LENGTH} tokens a device; "
        f"times are those to a validation perplexity of {choice.target:g}, which is exact and "
        "measured on snapshots while the clock stands still (DiLoCo and SPARTA: on the mean of the "
        f"devices' weights). PowerSGD of rank 4 starts after {POWERSGD_DENSE_STEPS} steps, which "
        "its tokens/s and MB a step leave out; DiLoCo's are those of rounds of "
        f"{DILOCO_STEPS} steps. Median (least to most) where there are several seeds.\n\n"
        + table(rows)
        + "\n\\* predicted: tokens to the target, by the curve that four processes of this machine "
        "make without links and shares, at the tokens/s measured over the link.\n\n"
        "Where a rival is ahead of thinwire's best:\n\n" + "\n".join(wins) + "\n" + sweeps(kept)
    )
    write(kept.file.stem, "Rivals on slow links", body, {"measurements": kept.found})


def lines_of(link: str, rows: Sequence[Row], choice: Choice) -> Iterator[dict[str, str]]:
    """The lines of the table."""
    ours = [row for row in rows if row.method is None]
    for row in rows:
        mark = " *" if row.predicted else ""
        tokens = several([p.tokens for p in row.finishes])
        seconds = several([p.seconds for p in row.finishes])
        best = min((o.seconds for o in ours), default=float("inf"))
        times = f"{row.seconds / best:,.1f}" if row.finishes and best < float("inf") else ""
        yield {
            "link": link,
            "system": row.title,
            "loss": row.loss,
            "tokens/s": several(row.rates),
            "MB a step a device": f"{row.step_bytes / 1e6:,.3f}",
            f"tokens to {choice.target:g}": tokens or "not reached",
            f"seconds to {choice.target:g}": seconds + mark if seconds else "",
            "times thinwire's best": times,
        }


def several(values: Sequence[float]) -> str:
    """One value, or the spread of some."""
    return spread(values, 0) if len(values) > 1 else "".join(f"{value:,.0f}" for value in values)


def rivals_ahead(link: str, rows: Sequence[Row]) -> Iterator[str]:
    """Sentences about rivals that are better than the best of thinwire over this link."""
    ours = [row for row in rows if row.method is None]
    if not ours:
        return
    best = min(row.seconds for row in ours)
    fastest = max(row.rate for row in ours)
    least = min(row.step_bytes for row in ours)
    for row in rows:
        if row.method is None:
            continue
        found = []
        if row.seconds < best:
            found.append(f"reaches the target {best / row.seconds:.2f} times sooner")
        if row.rate > fastest:
            found.append(f"trains {row.rate / fastest:.2f} times the tokens/s")
        if row.step_bytes < least:
            found.append(f"sends {row.step_bytes / least:.2f} of the bytes a step")
        if found:
            yield f"- {link}: {row.title} ({row.loss} loss) {', '.join(found)}."
    if all(row.method is None or row.seconds >= best for row in rows):
        yield f"- {link}: no rival reaches the target sooner."


def sweeps(kept: Kept) -> str:
    """The table of optimisers and rates."""
    rows = []
    for name, found in kept.found.items():
        kind, *names = name.split("/")
        if kind == "sweep":
            family, loss, optimizer, lr = names
            took = chosen(kept, family, loss) == (optimizer, float(lr))
            ppl = f"{found['ppl']:.1f}"
            rows.append(
                {
                    "method": TITLES[family],
                    "loss": loss,
                    "optimiser": optimizer,
                    "rate": lr,
                    "validation ppl": f"**{ppl}**" if took else ppl,
                }
            )
    about = (
        f"\nOptimisers and rates, after {SWEEP_TOKENS:,} tokens, and for DiLoCo after its first "
        "round; DDP's are its hooks' too, and DiLoCo's and SPARTA's those of both losses:\n\n"
    )
    return about + table(rows) if rows else ""


def plot(file: Path, link: str, rows: Sequence[Row], choice: Choice) -> None:
    """Perplexity over time, one line a system."""
    figure = Figure(figsize=(8, 4.8), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = dict(zip(TITLES, LIGHT[1:], strict=False))
    for row in rows:
        if not row.curve:
            continue
        ours, dashed = row.method is None, " (predicted)" if row.predicted else ""
        axes.plot(
            [point.seconds for point in row.curve],
            [point.ppl for point in row.curve],
            marker="o" if row.loss == "sampled" else "x",
            markersize=3,
            linewidth=2.4 if ours else 1.2,
            linestyle="--" if row.predicted or "async" in row.title else "-",
            color=LIGHT[0] if row.method is None else colours[row.method],
            label=row.title if ours else f"{row.title}, {row.loss}{dashed}",
        )
    axes.axhline(choice.target, color="#999999", linewidth=0.8)
    axes.set(xscale="log", yscale="log", title=f"{WORKERS} devices, links of {link}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_yticks([200, 250, 300, 400, 600, 1000])
    axes.set_xlabel("seconds of training (log scale)")
    axes.set_ylabel("validation perplexity (log scale)")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file)
    print(file)


if __name__ == "__main__":
    main()
