"""The paper's four bars: what do a sample of the vocabulary and touched rows gain on a slow link?

One worker with the full softmax; one with a sampled one; four in standard asynchronous SGD (all
parameters pulled and pushed, full softmax); four that sample and exchange touched rows. Beside them
the other exchanges, and four workers that exchange nothing. Each worker, and the asynchronous
server, is an emulated device of 0.4 of a core with a link of its own, which needs root. Tokens/s,
time to a fixed validation perplexity, and how well `thinwire plan`, run on a device, forecast the
steps. The source of the bars: Xiao, Zhu, Liu, Zhang, IJCAI 2017, doi 10.24963/ijcai.2017/586.

    python benchmarks/bars.py [--links RATE ...] [--bars NAME ...] [--seeds N ...] [--quick]

What is measured already is not measured again, but with `--again`; `--report` measures nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import record
import torch
from lab.cluster import Cluster
from lab.race import SHARE, TARGET, WORKERS, Kept, Point, reached, snapshots, steady
from lab.runs import (
    CpuWatch,
    Processes,
    start_alone,
    start_async,
    start_together,
    thinwire,
    wait,
)
from limit import gemm_flop_per_second
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from record import novels, table

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.plan.machine import parse_rate
from thinwire.report.charts import charts
from thinwire.report.page import page
from thinwire.report.palette import LIGHT
from thinwire.report.runs import Run

# The first is the paper's balance of arithmetic to wire, about 900 FLOP a byte.
LINKS = ("300mbit", "1gbit", "20mbit")
CODEC = {"1gbit": "fp32", "300mbit": "bf16", "20mbit": "int4"}
NO_LINK = "none"
DATA = RunConfig().data
STEP_TOKENS = DATA.batch * DATA.length
# How long a speed is measured. A step with the full softmax takes 14 seconds; one in which all
# parameters travel takes minutes over 20 Mbit/s, and is counted in rounds of all workers.
SPEED_SECONDS, SLOW_LINK_SECONDS, NAIVE_SECONDS, QUICK_SECONDS = 20.0, 90.0, 100.0, 12.0
DENSE_ROUNDS = {"1gbit": 6, "300mbit": 6}
LEAST_ROUNDS = 3
SNAPSHOTS = 8
CURVE_EVERY_SECONDS = 20.0
LONGEST_RACE_SECONDS = 1800.0
TIMEOUT_SECONDS = 5400.0
# Of every run: nothing but training, at rates that do not depend on how long it was planned.
COMMON = (
    *("--optim.schedule", "constant", "--metrics.every_seconds", "1"),
    *("--eval.every_seconds", "1e9", "--eval.tokens", "2000"),
)


@dataclass(frozen=True)
class Bar:
    """A way to train.

    Attributes:
        name: on the command line and in charts.
        title: what it is.
        flags: its settings.
        tokens: enough of them to reach the target.
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
    def is_async(self) -> bool:
        """Whether a server, on a device of its own, holds the parameters."""
        return "--exchange async" in self.flags

    def settings(self, link: str) -> list[str]:
        """Its flags over this link."""
        return self.flags.format(codec=CODEC.get(link, "bf16")).split()


NAIVE = Bar("naive", "one worker, full softmax", "--loss.kind full", 250_000, workers=1)
ONE = Bar("one", "one worker, sampled", "", 250_000, workers=1)
DENSE = Bar(
    "dense",
    "four, standard asynchronous SGD",
    "--exchange async --select everything --loss.kind full --exchange.timeout_seconds 3600",
    500_000,
)
ASYNC = Bar("async", "four, sampled, async", "--exchange async --codec {codec}", 500_000)
SYNC = Bar("sync", "four, sampled, sync", "--exchange sync --codec {codec}", 800_000)
LATE = Bar(
    "late",
    "four, sampled, sync a step late",
    "--exchange sync --codec {codec} --exchange.delay 1",
    800_000,
)
PERIODIC = Bar("periodic", "four, sampled, periodic", "--exchange periodic --codec int4", 800_000)
ALONE = Bar("alone", "four that exchange nothing", "", 0)
BARS = (NAIVE, ONE, DENSE, ASYNC, SYNC, LATE, PERIODIC, ALONE)
QUICK_BARS, QUICK_WORDS = BARS[:4], 10_000
Case = tuple[Bar, str]
Found = Mapping[str, dict[str, Any]]
Jobs = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--links", nargs="+", default=LINKS, choices=LINKS, metavar="RATE")
    parser.add_argument("--bars", nargs="+", choices=[bar.name for bar in BARS], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    parser.add_argument(
        "--longest",
        type=float,
        default=LONGEST_RACE_SECONDS,
        metavar="SECONDS",
        help="bars with the full softmax that would need more to the target are not run to it",
    )
    parser.add_argument("--quick", action="store_true", help="the paper's bars on a small scale")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    parser.add_argument("--report", action="store_true", help="only make tables and plots anew")
    arguments = parser.parse_args()
    bars = [bar for bar in BARS if not arguments.bars or bar.name in arguments.bars]
    kept = Kept("bars-quick" if arguments.quick else "bars", again=arguments.again)
    if arguments.report:
        jobs: Jobs = iter(())
    elif arguments.quick:
        jobs = quick_jobs(arguments.data or novels(f"--vocab-size={QUICK_WORDS}"))
    else:
        data = arguments.data or novels()
        here = cases(bars, arguments.links)
        jobs = all_jobs(kept.found, data, here, arguments.seeds, arguments.longest)
    for name, job in jobs:
        kept.measure(name, job)
    write_report(kept)


def cases(bars: Sequence[Bar], links: Sequence[str]) -> list[Case]:
    """Each bar over each link, but those that need none once."""
    here = [(bar, NO_LINK) for bar in bars if not bar.on_wire]
    return here + [(bar, link) for link in links for bar in bars if bar.on_wire]


# Measuring


def all_jobs(
    found: Found, data: Path, cases: Sequence[Case], seeds: Sequence[int], longest_seconds: float
) -> Jobs:
    """Every measurement's key, and how to make it; what was `found` so far decides on the rest.

    A bar with the full softmax is measured with the first seed alone, and races only if its curve
    over tokens and its speed say that it will not take longer.
    """
    yield "setting", partial(measure_setting, data)
    for link in dict.fromkeys(link for _, link in cases if link != NO_LINK) or LINKS[:1]:
        for plan, bar in {bar.plan: bar for bar, _ in cases}.items():
            yield f"plan/{plan}/{link}", partial(measure_plan, bar, link, data)
    seeded = [(*case, seed) for seed in seeds for case in cases]
    seeded = [(b, link, seed) for b, link, seed in seeded if not b.is_full or seed == seeds[0]]
    for bar, link, seed in seeded:
        budget = speed_budget(bar, link)
        yield key("speed", bar, link, seed), partial(measure_speed, bar, link, seed, data, budget)
    for bar in dict.fromkeys(bar for bar, _ in cases if bar.is_full):
        yield f"curve/{bar.name}", partial(measure_curve, bar, seeds[0], data)
    for bar, link, seed in seeded:
        rate = found[key("speed", bar, link, seed)]["tokens_per_second"]
        if bar is not ALONE and seconds_by_curve(found, bar, rate) < longest_seconds:
            yield key("race", bar, link, seed), partial(measure_race, bar, link, seed, data, rate)


def quick_jobs(data: Path) -> Jobs:
    """The paper's four bars on a small scale, and one race."""
    over, rounds, seconds = LINKS[0], rounds_budget(LEAST_ROUNDS), seconds_budget(QUICK_SECONDS)
    yield "setting", partial(measure_setting, data)
    yield f"plan/{ASYNC.plan}/{over}", partial(measure_plan, ASYNC, over, data)
    for bar, link in cases(QUICK_BARS, [over]):
        budget = rounds if bar is DENSE else seconds
        yield key("speed", bar, link, 1), partial(measure_speed, bar, link, 1, data, budget)
    yield key("race", ASYNC, over, 1), partial(measure_race, ASYNC, over, 1, data, 1e4)


def key(kind: str, bar: Bar, link: str, seed: int | str) -> str:
    """Under which a measurement is kept."""
    return f"{kind}/{bar.name}/{link}/{seed}"


def speed_budget(bar: Bar, link: str) -> list[str]:
    """For how long to measure the speed of a bar."""
    if bar is DENSE:
        return rounds_budget(DENSE_ROUNDS.get(link, LEAST_ROUNDS))
    if bar is NAIVE:
        return seconds_budget(NAIVE_SECONDS)
    return seconds_budget(SLOW_LINK_SECONDS if link == "20mbit" else SPEED_SECONDS)


def seconds_budget(seconds: float) -> list[str]:
    """So many seconds of training."""
    return ["--seconds", str(seconds)]


def rounds_budget(rounds: int) -> list[str]:
    """So many steps of each of four workers, all of them recorded."""
    return ["--tokens", str(rounds * WORKERS * STEP_TOKENS), "--metrics.every_steps", "1"]


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
    return {"words": words, "flop_per_second": SHARE * gemm_flop_per_second()}


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
    """The curve of a run to the target, which trains so many tokens a second."""
    options = snapshot_options(bar, bar.tokens / rate / SNAPSHOTS)
    return on_devices(bar, link, seed, data, options, lambda runs: {"points": snapshots(runs[0])})


def measure_curve(bar: Bar, seed: int, data: Path) -> dict[str, Any]:
    """The curve of the same algorithm on this machine as it is, without links and shares."""
    several = ["--workers", str(bar.workers), "--threads", "1"] if bar.workers > 1 else []
    options = [*several, *snapshot_options(bar, CURVE_EVERY_SECONDS), *bar.settings(NO_LINK)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = thinwire("train", data, "--out", run, *COMMON, *options, "--seed", seed)
        subprocess.run(command, check=True)
        return {"points": snapshots(run)}


def snapshot_options(bar: Bar, every_seconds: float) -> list[str]:
    """The budget of a race, and what is kept of it."""
    every = ["--checkpoint.every_seconds", f"{every_seconds:.2f}", "--checkpoint.keep", "1000"]
    return ["--tokens", str(bar.tokens), *every]


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
            wait(processes, folder, TIMEOUT_SECONDS, watch.look)
        runs = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
        found = read(runs)
    finally:
        shutil.rmtree(folder)
    shares = watch.shares()
    server = {"server_share": shares.pop(0)} if bar.is_async else {}
    return {**found, "link_bits_per_second": measured, "worker_shares": shares, **server}


def start(
    bar: Bar, cluster: Cluster, data: Path, folder: Path, flags: Sequence[str], seed: int
) -> Processes:
    """Start its workers and, before them, its server."""
    if not bar.on_wire:
        return start_alone(cluster, bar.workers, data, folder, flags, seed)
    together = start_async if bar.is_async else start_together
    return together(cluster, bar.workers, data, folder, [*flags, "--seed", str(seed)])


def rate_of(link: str) -> str | None:
    """As `tc` takes it."""
    return None if link == NO_LINK else link


# What was found


@dataclass(frozen=True)
class Finish:
    """Where a bar reaches the target: a point for each seed, or none at all.

    If it was not `raced`, tokens are those of its curve without links and shares, and seconds are
    these tokens over its tokens/s.
    """

    points: list[Point]
    raced: bool

    @property
    def seconds(self) -> list[float]:
        """Of each seed."""
        return [point.seconds for point in self.points]


class Results:
    """What the measurements say of a bar over a link."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.links = [link for link in LINKS if self._named("speed/", f"/{link}/")]
        self.cases = [case for case in cases(BARS, self.links) if self.runs("speed", *case)]

    def _named(self, prefix: str, part: str = "") -> list[str]:
        return [name for name in self.found if name.startswith(prefix) and part in name]

    def runs(self, kind: str, bar: Bar, link: str) -> dict[int, dict[str, Any]]:
        """The measurements of a kind, by seed; of a bar that needs no link, over none."""
        prefix = key(kind, bar, link if bar.on_wire else NO_LINK, "")
        return {int(name[len(prefix) :]): self.found[name] for name in self._named(prefix)}

    def rates(self, bar: Bar, link: str) -> list[float]:
        """Tokens/s of each seed."""
        return [run["tokens_per_second"] for run in self.runs("speed", bar, link).values()]

    def ratios(self, bar: Bar, base: Bar, link: str) -> list[float]:
        """Tokens/s over another bar's, of each seed with which both were measured."""
        ours, theirs = self.runs("speed", bar, link), self.runs("speed", base, link)
        name = "tokens_per_second"
        return [ours[seed][name] / theirs[seed][name] for seed in ours if seed in theirs]

    def curves(self, bar: Bar, link: str) -> tuple[list[list[Point]], bool]:
        """A curve for each seed, and whether it was raced; see `Finish`."""
        races = self.runs("race", bar, link)
        if races:
            return [points_of(race) for race in races.values()], True
        curve, rates = self.found.get(f"curve/{bar.name}"), self.rates(bar, link)
        if curve is None or not rates:
            return [], False
        return [[p._replace(seconds=p.tokens / median(rates)) for p in points_of(curve)]], False

    def finish(self, bar: Bar, link: str) -> Finish:
        """When it reaches the target: none if not every seed does."""
        curves, raced = self.curves(bar, link)
        ends = [end for points in curves if (end := reached(points, TARGET))]
        return Finish(ends if len(ends) == len(curves) else [], raced)

    def planned_seconds(self, bar: Bar, link: str) -> float | None:
        """The step of a worker as `thinwire plan` forecast it on a device."""
        plans = self._named(f"plan/{bar.plan}/", link if bar.on_wire else "")
        settings = bar.settings(link)
        flags = dict(zip(settings[::2], settings[1::2], strict=True))
        wanted = {
            "exchange": flags.get("--exchange", "none"),
            "codec": flags.get("--codec", "fp32" if bar.on_wire else ""),
            "select": flags.get("--select", "rows"),
        }
        for forecast in self.found[plans[0]]["forecasts"] if plans else []:
            if wanted.items() <= forecast.items():
                return float(forecast["step_seconds"])
        return None


# Tables


def write_report(kept: Kept) -> None:
    """Tables, plots and a page from what was measured so far."""
    if "setting" not in kept.found:
        sys.exit(f"nothing has been measured yet: {kept.file} does not hold a measurement")
    results, name = Results(kept.found), kept.file.stem
    words, flop = (kept.found["setting"][name] for name in ("words", "flop_per_second"))
    balance = ", ".join(f"{flop / parse_rate(link):,.0f} at {link}" for link in results.links)
    body = f"""\
Devices of {SHARE} of a core and one thread: {flop / 1e9:.0f} GFLOP/s in matrix products, or so many
FLOP while a link carries a byte: {balance} (the paper's machine: about 900). The novels,
{words:,} words, LSTM of width 256, the defaults of `thinwire train` at a constant learning rate;
{DATA.batch} sequences of {DATA.length} tokens a step of each worker, so that four workers see four
times the batch of one. The asynchronous server is one more device. Median (least to most) of the
seeds; standard asynchronous SGD, and what the full softmax reaches, have one.

{table(bar_row(results, *case) for case in results.cases)}
\\*: not run to the target. The tokens are those of the same algorithm's curve over tokens without
links and shares; the seconds are these tokens over the tokens/s measured here.

The same runs: what the devices did, and what `thinwire plan` had forecast on one of them.

{table(device_row(results, *case) for case in results.cases)}
Measured at {kept.commits()}.
"""
    record.write(name, "The four bars", body, {"measurements": kept.found})
    draw_bars(results, record.RESULTS / f"{name}.png")
    draw_curves(results, "seconds", record.RESULTS / f"{name}-time.png")
    draw_curves(results, "tokens", record.RESULTS / f"{name}-tokens.png")
    runs = [run for case in results.cases if (run := as_run(results, *case))]
    if runs:
        html = page(runs, charts(runs)[:2], datetime.now())
        (record.RESULTS / f"{name}.html").write_text(html, encoding="utf-8")


def bar_row(results: Results, bar: Bar, link: str) -> dict[str, str]:
    """How fast a bar trains, and when it is at the target."""
    end, naive = results.finish(bar, link), results.finish(NAIVE, link)
    mark = " *" if end.points and not end.raced else ""
    sooner = [median(naive.seconds) / s for s in end.seconds] if naive.points else []
    runs = results.runs("speed", bar, link).values()
    shares = [] if bar.is_full or bar.workers == 1 else results.ratios(bar, ALONE, link)
    return {
        "bar": bar.title,
        "link": link,
        "tokens/s": middle(results.rates(bar, link), 0),
        "times naive": middle(results.ratios(bar, NAIVE, link), 1),
        "times standard async SGD": middle(results.ratios(bar, DENSE, link), 1),
        "share of no exchange": middle(shares, 2),
        f"tokens to {TARGET:.0f}": middle([point.tokens for point in end.points], 0) + mark,
        f"seconds to {TARGET:.0f}": middle(end.seconds, 1) + mark,
        "times sooner than naive": middle(sooner, 1) + (mark if sooner else ""),
        "MB a step a worker": middle([run["step_bytes"] / 1e6 for run in runs if bar.on_wire], 2),
    }


def device_row(results: Results, bar: Bar, link: str) -> dict[str, str]:
    """What the devices did meanwhile, and what had been planned."""
    runs = results.runs("speed", bar, link).values()
    steps = [bar.workers * STEP_TOKENS / rate for rate in results.rates(bar, link)]
    planned = [seconds] if (seconds := results.planned_seconds(bar, link)) else []
    bits = [run["link_bits_per_second"] / 1e6 for run in runs if bar.on_wire]
    return {
        "bar": bar.title,
        "link": link,
        "link measured, Mbit/s": middle(bits, 0),
        "share of a core: workers": middle([s for run in runs for s in run["worker_shares"]], 2),
        "server": middle([run["server_share"] for run in runs if bar.is_async], 2),
        "wait, of the time": middle([run["waiting"] for run in runs if bar.on_wire], 2),
        "s a step": middle(steps, 3),
        "planned": middle(planned, 3),
        "planned / measured": middle([seconds / s for seconds in planned for s in steps], 2),
    }


def middle(values: Sequence[float], digits: int) -> str:
    """The median with the least and the largest, or the only value, or nothing."""
    if len(values) > 1:
        return record.spread(values, digits)
    return f"{values[0]:,.{digits}f}" if values else ""


# Pictures


def as_run(results: Results, bar: Bar, link: str) -> Run | None:
    """The race with the first seed as a report sees a run; None: there was none."""
    curves, raced = results.curves(bar, link)
    if not raced:
        return None
    valid = [{"step": point.tokens // STEP_TOKENS, **point._asdict()} for point in curves[0]]
    name = f"{bar.name} {link}" if bar.on_wire else bar.name
    settings = {"bar": bar.title, "link": link, "flags": " ".join(bar.settings(link))}
    end = {**valid[-1], "reason": "tokens spent"}
    return Run(Path(name), name, settings, {"workers": bar.workers}, [], valid, end, 0)


def draw_curves(results: Results, over: Literal["seconds", "tokens"], file: Path) -> None:
    """Perplexity over seconds or tokens, a panel a link; dotted: seconds that are computed."""
    figure, unit = new_figure(results, 4.6), 1000 if over == "tokens" else 1
    for axes, link in zip(panels(figure, 1, results.links)[0], results.links, strict=True):
        for bar, colour in zip(BARS, LIGHT, strict=False):
            curves, raced = results.curves(bar, link)
            for i, points in enumerate(curves):
                axes.plot(
                    [getattr(point, over) / unit for point in points],
                    [point.ppl for point in points],
                    linestyle="-" if raced or over == "tokens" else ":",
                    linewidth=0.7 if i else 1.8,
                    marker="o",
                    markersize=1.5 if i else 3.0,
                    color=colour,
                    label=None if i else bar.title,
                )
        axes.axhline(TARGET, color="#777777", linewidth=0.8, linestyle="--")
        axes.set(title=f"links of {link}", yscale="log")
        if over == "tokens":
            axes.set(xlabel="thousands of training tokens")
        else:
            axes.set(xlabel="seconds of training (log scale)", xscale="log")
        axes.set_yticks([200, TARGET, 400, 700, 1000, 2000])
        written_out(axes.xaxis, axes.yaxis)
    figure.axes[0].set_ylabel("validation perplexity (log scale)")
    names = figure.axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=150)


def draw_bars(results: Results, file: Path) -> None:
    """Tokens/s, and seconds to the target, a column a link; pale: seconds that are computed."""
    figure = new_figure(results, 6.0)
    above, below = panels(figure, 2, results.links)
    for axes, link in zip(above, results.links, strict=True):
        draw_row(axes, [results.rates(bar, link) for bar in BARS])
        axes.set(title=f"links of {link}", xlabel="tokens/s (log scale)")
    for axes, link in zip(below, results.links, strict=True):
        ends = [results.finish(bar, link) for bar in BARS]
        draw_row(axes, [end.seconds for end in ends], [1.0 if end.raced else 0.5 for end in ends])
        axes.set(xlabel=f"seconds to perplexity {TARGET:.0f} (log scale)")
    figure.savefig(file, dpi=150)


def draw_row(axes: Axes, values: Sequence[Sequence[float]], alphas: Sequence[float] = ()) -> None:
    """The median for each of `BARS`, if it has values."""
    for place, found in enumerate(values):
        if found:
            alpha = alphas[place] if alphas else 1.0
            axes.barh(place, median(found), color=LIGHT[place], alpha=alpha)
            axes.text(median(found), place, f" {median(found):,.0f}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(BARS)), [bar.title for bar in BARS])
    axes.set_ylim(len(BARS) - 0.5, -0.5)
    axes.margins(x=0.2)
    written_out(axes.xaxis)


def new_figure(results: Results, height: float) -> Figure:
    """An empty picture with room for a panel a link."""
    figure = Figure(
        figsize=(max(7.0, 2.0 + 4.0 * len(results.links)), height), layout="constrained"
    )
    FigureCanvasAgg(figure)
    return figure


def panels(figure: Figure, rows: int, links: Sequence[str]) -> list[list[Axes]]:
    """Axes by row and link."""
    grid = figure.subplots(rows, len(links), sharex="row", sharey=True, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    return [list(row) for row in grid]


def written_out(*log_axes: Axis) -> None:
    """Label the ticks with plain numbers."""
    for axis in log_axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())


if __name__ == "__main__":
    main()
