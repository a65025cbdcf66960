"""What would people use instead of thinwire, and how does it do on slow links?

Four devices of 0.4 of a core each, with links of a given rate (needs root), train the same model
from the same weights on the same batches. thinwire runs with the exchange that suits the link; a
rival is an ordinary PyTorch loop (benchmarks/rivals/train.py) around DistributedDataParallel, its
bf16 or PowerSGD hook, DiLoCo or SPARTA, with thinwire's sampled softmax or,
DistributedDataParallel, PyTorch's full one too, and with the optimiser and the rate that did best
in a sweep. After a warm-up all rates stay as they are, so that perplexity over tokens does not
depend on where a run was to end.

    python -m benchmarks.questions.rivals [--links RATE ...] [--methods NAME ...] [--quick]

What is measured already is not measured again, but with `--again`; `--report` measures nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.race import SHARE, WORKERS, Point, reached
from benchmarks.record.kept import Kept
from benchmarks.record.write import spread, table, write
from benchmarks.rivals.races import (
    BATCH,
    DILOCO_STEPS,
    LENGTH,
    LINKS,
    LONGEST_RACE_SECONDS,
    POWERSGD_DENSE_STEPS,
    QUICK_LINK,
    STEP_TOKENS,
    SWEEP_TOKENS,
    TITLES,
    Choice,
    chosen,
    curve_points,
    measure,
    race,
)
from thinwire.report.palette import LIGHT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
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
    kept = Kept(
        "rivals-quick" if quick else record_name("rivals", arguments.corpus), again=arguments.again
    )
    if not arguments.report:
        measure(kept, data_folder(arguments), choice)
    write_report(kept, choice)


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
    theirs = [
        (TITLES[method], method, method, loss)
        for method in TITLES
        for loss in choice.losses(method)
    ]
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
    lines = [line for link, found in links.items() for line in lines_of(link, found, choice)]
    wins = [line for link, found in links.items() for line in rivals_ahead(link, found)]
    losses = kept.file.stem.removesuffix("-quick").replace("rivals", "losses")
    for link, found in links.items():
        plot(kept.file.with_name(f"{kept.file.stem}-{link}.png"), link, found, choice)
    body = (
        f"{WORKERS} devices of {SHARE} of a core, {BATCH} sequences of {LENGTH} tokens a device; "
        f"times are those to a validation perplexity of {choice.target:g}, which is exact and "
        "measured on snapshots while the clock stands still (DiLoCo and SPARTA: on the mean of the "
        f"devices' weights). PowerSGD of rank 4 starts after {POWERSGD_DENSE_STEPS} steps, which "
        "its tokens/s and MB a step leave out; DiLoCo's are those of rounds of "
        f"{DILOCO_STEPS} steps. Median (least to most) where there are several seeds. What each "
        f"loss costs on one device is in [losses]({losses}.md).\n\n"
        + table(lines)
        + "\n\\* predicted: tokens to the target, by the curve that four processes of this machine "
        "make without links and shares, at the tokens/s measured over the link.\n\n"
        "Where a rival is ahead of thinwire's best:\n\n"
        + "\n".join(wins)
        + "\n"
        + sweeps(kept)
        + origins(kept, tuple(links))
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
        "round; DDP's are its hooks' too:\n\n"
    )
    return about + table(rows) if rows else ""


def origins(kept: Kept, links: Sequence[str]) -> str:
    """Where the parts of the tables come from."""
    parts = {"sweeps": "sweep/", "curves": "curve/", **{link: f"/{link}/" for link in links}}
    lines = (f"- {what}: {kept.origins(part)}\n" for what, part in parts.items())
    return "\nMeasured at:\n\n" + "".join(lines)


def plot(file: Path, link: str, rows: Sequence[Row], choice: Choice) -> None:
    """Perplexity over time, one line a system."""
    figure = Figure(figsize=(8, 4.8), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = dict(zip(TITLES, LIGHT[1:], strict=False))
    styles = iter(("-", "-.", ":"))
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
            linestyle=next(styles) if ours else "--" if row.predicted else "-",
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
