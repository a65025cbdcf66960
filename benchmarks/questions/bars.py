"""The paper's four bars: what do a sample of the vocabulary and touched rows gain on a slow link?

One worker with the full softmax; one with a sampled one; four in standard asynchronous SGD (all
parameters pulled and pushed, full softmax); four that sample and exchange touched rows. Beside them
the other exchanges, and four workers that exchange nothing. Each worker, and the asynchronous
server, is an emulated device of 0.4 of a core with a link of its own, which needs root. Tokens/s,
time to a fixed validation perplexity, and how well `thinwire plan`, run on a device, forecast the
steps. The source of the bars: Xiao, Zhu, Liu, Zhang, IJCAI 2017, doi 10.24963/ijcai.2017/586.

    python -m benchmarks.questions.bars [--links RATE ...] [--bars NAME ...] [--quick]

What is measured already is not measured again, but with `--again`; `--plans` only makes the
forecasts, anew, and `--report` measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.four_bars import (
    ALONE,
    BARS,
    DATA,
    DENSE,
    LINKS,
    LONGEST_RACE_SECONDS,
    NAIVE,
    NO_LINK,
    QUICK_WORDS,
    RACE_BATCH,
    SLOW_LINK,
    STEP_TOKENS,
    Bar,
    Found,
    Jobs,
    all_jobs,
    cases,
    key,
    points_of,
    quick_jobs,
)
from benchmarks.lab.race import SHARE, TARGET, Point, reached
from benchmarks.record.kept import Kept
from benchmarks.record.write import RESULTS, spread, table, write
from thinwire.plan.machine import parse_rate
from thinwire.report.charts import charts
from thinwire.report.page import page
from thinwire.report.palette import LIGHT
from thinwire.report.runs import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
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
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--again", action="store_true", help="also what is measured already")
    what.add_argument("--plans", action="store_true", help="only make the forecasts, anew")
    what.add_argument("--report", action="store_true", help="only make tables and plots anew")
    arguments = parser.parse_args()
    bars = [bar for bar in BARS if not arguments.bars or bar.name in arguments.bars]
    again = arguments.again or arguments.plans
    kept = Kept(
        "bars-quick" if arguments.quick else record_name("bars", arguments.corpus), again=again
    )
    if arguments.report:
        jobs: Jobs = iter(())
    elif arguments.quick:
        jobs = quick_jobs(data_folder(arguments, f"--vocab-size={QUICK_WORDS}"))
    else:
        data = data_folder(arguments)
        here = cases(bars, arguments.links)
        jobs = all_jobs(kept.found, data, here, arguments.seeds, arguments.longest)
    if arguments.plans:  # which come right after the setting
        next(jobs)
        jobs = takewhile(lambda job: job[0].startswith("plan/"), jobs)
    for name, job in jobs:
        kept.measure(name, job)
    write_report(kept)


# What was found


@dataclass(frozen=True)
class Finish:
    """Where a bar reaches the target: a point for each seed, or none at all.

    If it was not `raced`, tokens are those of its curve without links and shares, and seconds are
    these tokens over its tokens/s with the batch of a race.
    """

    points: list[Point]
    raced: bool
    rates: list[float]
    """Tokens/s with the batch of a race, if that is known."""

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
        curve, rates = self.found.get(f"curve/{bar.name}"), self.race_rates(bar, link)
        if curve is None or not rates:
            return [], False
        return [[p._replace(seconds=p.tokens / median(rates)) for p in points_of(curve)]], False

    def race_rates(self, bar: Bar, link: str) -> list[float]:
        """Tokens/s with the batch of a race, of each seed.

        Of standard asynchronous SGD over the slow link, where no pace is measured, as if its steps
        took as long as with the larger batch: all parameters travel in either.
        """
        if bar is DENSE and link == SLOW_LINK:
            return [rate * RACE_BATCH / DATA.batch for rate in self.rates(bar, link)]
        kind = "pace" if bar is DENSE else "speed" if bar.workers == 1 else "race"
        return [run["tokens_per_second"] for run in self.runs(kind, bar, link).values()]

    def finish(self, bar: Bar, link: str) -> Finish:
        """When it reaches the target: none if not every seed does."""
        curves, raced = self.curves(bar, link)
        ends = [end for points in curves if (end := reached(points, TARGET))]
        whole = len(ends) == len(curves)
        return Finish(ends if whole else [], raced, self.race_rates(bar, link))

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
    results, name = Results(kept.found), kept.file.stem
    if "setting" not in kept.found or not results.cases:
        sys.exit(f"no bar has been measured yet: {kept.file} does not hold a speed")
    data = kept.found["setting"].get("data", "novels")
    words, flop = (kept.found["setting"][name] for name in ("words", "flop_per_second"))
    balance = ", ".join(f"{flop / parse_rate(link):,.0f} at {link}" for link in results.links)
    body = f"""\
Devices of {SHARE} of a core and one thread: {flop / 1e9:.0f} GFLOP/s in matrix products, or so many
FLOP while a link carries a byte: {balance} (the paper's machine: about 900). {data},
{words:,} words, LSTM of width 256, the defaults of `thinwire train` at a constant learning rate.
The asynchronous server is one more device. Median (least to most) of the seeds; standard
asynchronous SGD, and what the full softmax reaches, have one.

Speed, with {DATA.batch} sequences of {DATA.length} tokens a step of each worker:

{table(speed_row(results, *case) for case in results.cases)}
The race to a validation perplexity of {TARGET:.0f}, with the same batch in all, so that each of
four workers has {RACE_BATCH} sequences a step:

{table(race_row(results, *case) for case in results.cases if case[0] is not ALONE)}
\\*: not run to the target. The tokens are those of the same algorithm's curve over tokens without
links and shares; the seconds are these tokens over the tokens/s measured here (at {SLOW_LINK}:
of steps as long as with {DATA.batch} sequences a worker, for the wire takes nearly all of them).
{least_dense(results)}
The runs of the first table: what the devices did, and what `thinwire plan` had forecast on one.

{table(device_row(results, *case) for case in results.cases)}
Measured at {kept.origins()}.
"""
    write(name, "The four bars", body, {"measurements": kept.found})
    draw_bars(results, RESULTS / f"{name}.png")
    draw_curves(results, "seconds", RESULTS / f"{name}-time.png")
    draw_curves(results, "tokens", RESULTS / f"{name}-tokens.png")
    runs = [run for case in results.cases if (run := as_run(results, *case))]
    if runs:
        html = page(runs, charts(runs)[:2], datetime.now())
        (RESULTS / f"{name}.html").write_text(html, encoding="utf-8")


def speed_row(results: Results, bar: Bar, link: str) -> dict[str, str]:
    """How fast a bar trains."""
    runs = results.runs("speed", bar, link).values()
    shares = [] if bar.is_full or bar.workers == 1 else results.ratios(bar, ALONE, link)
    return {
        "bar": bar.title,
        "link": link,
        "tokens/s": middle(results.rates(bar, link), 0),
        "times naive": middle(results.ratios(bar, NAIVE, link), 1),
        "times standard async SGD": middle(results.ratios(bar, DENSE, link), 1),
        "share of no exchange": middle(shares, 2),
        "MB a step a worker": middle([run["step_bytes"] / 1e6 for run in runs if bar.on_wire], 2),
    }


def race_row(results: Results, bar: Bar, link: str) -> dict[str, str]:
    """When a bar is at the target."""
    end = results.finish(bar, link)
    mark = " *" if end.points and not end.raced else ""

    def sooner(base: Bar) -> str:
        than = results.finish(base, link)
        times = [median(than.seconds) / s for s in end.seconds] if than.points else []
        return middle(times, 1) + (mark if times else "")

    missed = f"not in {bar.tokens:,}" if end.raced and not end.points else ""
    return {
        "bar": bar.title,
        "link": link,
        "tokens/s": middle(end.rates, 0),
        "tokens": missed or middle([point.tokens for point in end.points], 0) + mark,
        "seconds": middle(end.seconds, 1) + mark,
        "times sooner than naive": sooner(NAIVE),
        "than standard async SGD": sooner(DENSE) if bar.on_wire else "",
    }


def least_dense(results: Results) -> str:
    """That the batch that makes standard asynchronous SGD fastest would not bring it near."""
    tokens = [point.tokens for point in results.finish(NAIVE, NO_LINK).points]
    rates = {link: results.rates(DENSE, link) for link in results.links}
    least = [f"{tokens[0] / r[0]:,.0f} s at {link}" for link, r in rates.items() if tokens and r]
    if not least:
        return ""
    return (
        f"\nStandard asynchronous SGD trains faster with {DATA.batch} sequences a worker. Were its "
        "tokens then worth\nas much as one worker's, which they are not, it would still need "
        f"{', '.join(least)}.\n"
    )


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
        return spread(values, digits)
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
    figure.legend(*names, loc="outside lower center", ncols=2, frameon=False)
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
    axes.xaxis.set_major_locator(LogLocator())
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
