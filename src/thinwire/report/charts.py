"""The curves of a report; `svg` and `png` draw them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from thinwire.report.figures import BYTES, COUNTS, TIMES, Unit, count, duration, number, unit_for
from thinwire.report.runs import Line, Run

T = TypeVar("T")

# More points than pixels only make the page larger.
MOST_POINTS = 300


class Point(NamedTuple):
    """A point, and its tooltip."""

    x: float
    y: float
    tip: str = ""


@dataclass(frozen=True)
class Series:
    """The curve of one run. `colour` is the index of the run in the report."""

    name: str
    colour: int
    points: list[Point]


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis, which starts at 0.

    Attributes:
        marked: whether each point is marked, as a separate measurement of which the lowest counts.
        log: whether the y axis is logarithmic.
        from_zero: whether the y axis starts at 0.
        empty: the sentence to show if there are no points.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    empty: str
    marked: bool = False
    log: bool = False
    from_zero: bool = False

    @property
    def x_max(self) -> float:
        """The end of the x axis."""
        return max(point.x for series in self.series for point in series.points) or 1.0

    @property
    def y_range(self) -> tuple[float, float]:
        """The ends of the y axis, with some room around the curves."""
        values = [point.y for series in self.series for point in series.points]
        low, high = min(values), max(values)
        if self.from_zero:
            return 0.0, 1.08 * high or 1.0
        if self.log:
            ratio = max(high / low, 1.02)
            return low / ratio**0.16, high * ratio**0.06
        room = max(high - low, 0.02 * abs(high), 1e-9)
        return low - 0.12 * room, high + 0.06 * room


def charts(runs: list[Run]) -> list[Chart]:
    """All charts of a report; the one over bytes only if something was sent."""
    seconds = unit_for(max((run.totals.get("seconds", 0) for run in runs), default=0), TIMES)
    tokens = unit_for(max((run.totals.get("tokens", 0) for run in runs), default=0), COUNTS)
    over_time = f"training time ({seconds.name})"
    over_tokens = f"training tokens ({tokens.name})" if tokens.name else "training tokens"
    curves = [
        Chart(
            "Validation perplexity over time",
            over_time,
            "perplexity (log scale)",
            [_valid(run, i, "seconds", seconds) for i, run in enumerate(runs)],
            "No validation yet.",
            marked=True,
            log=True,
        ),
        Chart(
            "Validation perplexity over tokens",
            over_tokens,
            "perplexity (log scale)",
            [_valid(run, i, "tokens", tokens) for i, run in enumerate(runs)],
            "No validation yet.",
            marked=True,
            log=True,
        ),
        *_losses(runs, over_tokens, tokens),
        Chart(
            "Speed",
            over_time,
            "tokens a second",
            [_train(run, i, "seconds", seconds, "tokens_per_second") for i, run in enumerate(runs)],
            "Nothing recorded yet.",
            from_zero=True,
        ),
    ]
    sent = max((run.totals.get("bytes_sent", 0) for run in runs), default=0)
    if sent:
        size = unit_for(sent, BYTES)
        curves.append(
            Chart(
                "Validation perplexity over bytes sent",
                f"sent by all workers ({size.name})",
                "perplexity (log scale)",
                [_valid_over_bytes(run, i, size) for i, run in enumerate(runs)],
                "No validation yet.",
                marked=True,
                log=True,
            )
        )
    return curves


def _losses(runs: list[Run], over_tokens: str, tokens: Unit) -> list[Chart]:
    """The charts of the training loss; that of NCE, a sum of binary losses, has its own."""
    by_nce: dict[bool, list[Series]] = {}
    for i, run in enumerate(runs):
        is_nce = run.settings.get("loss.kind") == "nce"
        by_nce.setdefault(is_nce, []).append(_train(run, i, "tokens", tokens, "loss"))
    titles = {
        False: ("Training loss", "loss (nats a token)"),
        True: ("Training loss of NCE", "NCE loss a token; compares with no other loss"),
    }
    return [
        Chart(title, over_tokens, label, by_nce[is_nce], "Nothing recorded yet.")
        for is_nce, (title, label) in titles.items()
        if is_nce in by_nce
    ]


def _valid(run: Run, colour: int, key: str, unit: Unit) -> Series:
    points = [Point(line[key] / unit.size, line["ppl"], _tip(run, line)) for line in run.valid]
    return Series(run.name, colour, thinned(points, lambda point: point.y))


def _valid_over_bytes(run: Run, colour: int, unit: Unit) -> Series:
    """`bytes_sent` grows along a run as `tokens` does; between two lines it is interpolated."""
    lines = (line for line in (*run.train, run.totals) if "bytes_sent" in line)
    known = [(0, 0), *((line["tokens"], line["bytes_sent"]) for line in lines)]
    points = [
        Point(_interpolated(known, line["tokens"]) / unit.size, line["ppl"], _tip(run, line))
        for line in (run.valid if len(known) > 1 else [])
    ]
    return Series(run.name, colour, thinned(points, lambda point: point.y))


def _interpolated(known: list[tuple[int, int]], x: float) -> float:
    right = min(max(bisect_left(known, (x, 0)), 1), len(known) - 1)
    (x0, y0), (x1, y1) = known[right - 1], known[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1


def _train(run: Run, colour: int, x: str, unit: Unit, y: str) -> Series:
    points = [Point(line[x] / unit.size, line[y]) for line in run.train]
    return Series(run.name, colour, averaged(points))


def _tip(run: Run, line: Line) -> str:
    return (
        f"{run.name}: perplexity {number(line['ppl'])} "
        f"after {duration(line['seconds'])}, {count(line['tokens'])} tokens"
    )


def thinned(items: list[T], height: Callable[[T], float], most: int = MOST_POINTS) -> list[T]:
    """At most about `most` items, evenly spread, including the first, the lowest and the last."""
    if len(items) <= most:
        return items
    keep = {round(i * (len(items) - 1) / (most - 1)) for i in range(most)}
    keep.add(min(range(len(items)), key=lambda i: height(items[i])))
    return [items[i] for i in sorted(keep)]


def averaged(points: list[Point]) -> list[Point]:
    """Means of groups of neighbours, so that at most `MOST_POINTS` points are left."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [Point(sum(p.x for p in g) / len(g), sum(p.y for p in g) / len(g)) for g in groups]
