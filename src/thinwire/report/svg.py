"""Draws a chart as inline SVG; the style sheet of the page sets its colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

from thinwire.report.charts import Chart, Point, Series
from thinwire.report.figures import apart, labels, linear_ticks, log_ticks, number, tick_label
from thinwire.report.html import Html, join, tag
from thinwire.report.palette import colour, dash

# Sizes in units of the drawing, which the page scales.
WIDTH, HEIGHT = 420, 270
TOP, BOTTOM, LEFT, RIGHT = 26, 40, 40, 12
CHARACTER_WIDTH = 6.8
LINE_HEIGHT = 14
DOT_RADIUS = 2.6
# Dots that are closer together than this would hide the curve.
DOTS_APART = 5

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Frame:
    """The area of the curves: its right edge, and the map from data to drawing for each axis."""

    right: float
    x: Scale
    y: Scale


def draw(chart: Chart) -> Html:
    """The chart as SVG; if there is nothing to draw, a sentence."""
    drawn = [series for series in chart.series if series.points]
    if not drawn:
        return tag("p", chart.empty, class_="empty")
    labels = _labels(chart, drawn)
    frame = _frame(chart, max((len(label) for label in labels), default=0))
    return tag(
        "svg",
        _grid(chart, frame),
        *(_curve(series, frame, chart.marked) for series in drawn),
        _direct_labels(drawn, labels, frame) if labels else _lowest(chart, drawn, frame),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=_described(chart, drawn),
    )


def _labels(chart: Chart, drawn: list[Series]) -> list[str]:
    """The names at the ends of the curves, if there are several curves and enough space."""
    if len(chart.series) == 1 or len(drawn) * LINE_HEIGHT > HEIGHT - TOP - BOTTOM:
        return []
    return labels([series.name for series in drawn])


def _frame(chart: Chart, label_length: int) -> Frame:
    right = WIDTH - RIGHT - (14 + CHARACTER_WIDTH * label_length if label_length else 0)
    low, high = chart.y_range
    of_y = log if chart.log else float
    bottom, per_unit = HEIGHT - BOTTOM, (HEIGHT - BOTTOM - TOP) / (of_y(high) - of_y(low))
    return Frame(
        right,
        x=lambda x: LEFT + (right - LEFT) * x / chart.x_max,
        y=lambda y: bottom - (of_y(y) - of_y(low)) * per_unit,
    )


def _grid(chart: Chart, frame: Frame) -> Html:
    bottom = HEIGHT - BOTTOM
    low, high = chart.y_range
    parts = [tag("text", chart.y_label, x=0, y=12, class_="axis")]
    for value in (log_ticks if chart.log else linear_ticks)(low, high):
        y = frame.y(value)
        parts += [
            tag("line", x1=LEFT, x2=frame.right, y1=y, y2=y, class_="grid"),
            tag("text", tick_label(value), x=LEFT - 6, y=y + 4, text_anchor="end"),
        ]
    parts.append(tag("line", x1=LEFT, x2=frame.right, y1=bottom, y2=bottom, class_="base"))
    for value in linear_ticks(0, chart.x_max, most=5):
        parts.append(
            tag("text", tick_label(value), x=frame.x(value), y=bottom + 16, text_anchor="middle")
        )
    middle = (LEFT + frame.right) / 2
    parts.append(
        tag("text", chart.x_label, x=middle, y=HEIGHT - 6, text_anchor="middle", class_="axis")
    )
    return join(*parts)


def _curve(series: Series, frame: Frame, marked: bool) -> Html:
    at = [(frame.x(point.x), frame.y(point.y)) for point in series.points]
    dotted = at[-1][0] - at[0][0] >= DOTS_APART * (len(at) - 1)
    parts = [
        tag(
            "polyline",
            tag("title", series.name),
            points=" ".join(f"{x:.1f},{y:.1f}" for x, y in at),
            stroke_dasharray=dash(series.colour) or None,
        )
    ]
    if marked:
        parts += [
            tag(
                "circle",
                tag("title", point.tip),
                cx=x,
                cy=y,
                r=DOT_RADIUS if dotted else 5,
                class_=None if dotted else "unseen",
            )
            for point, (x, y) in zip(series.points, at, strict=True)
        ]
    elif len(at) == 1:
        parts.append(tag("circle", cx=at[0][0], cy=at[0][1], r=DOT_RADIUS))
    return tag("g", *parts, class_=f"run-{colour(series.colour)}")


def _direct_labels(drawn: list[Series], labels: list[str], frame: Frame) -> Html:
    """The name of each curve to the right of the axes, connected to the curve's end."""
    ends = [(frame.x(s.points[-1].x), frame.y(s.points[-1].y)) for s in drawn]
    heights = apart([y for _, y in ends], LINE_HEIGHT, TOP + 4, HEIGHT - BOTTOM - 4)
    right = frame.right
    return join(
        *(
            tag(
                "g",
                tag(
                    "polyline",
                    points=f"{x:.1f},{y:.1f} {right:.1f},{y:.1f} {right + 8:.1f},{height:.1f}",
                    class_="leader",
                ),
                tag("text", label, tag("title", series.name), x=right + 11, y=height + 4),
                class_=f"name run-{colour(series.colour)}",
            )
            for series, label, (x, y), height in zip(drawn, labels, ends, heights, strict=True)
        )
    )


def _lowest(chart: Chart, drawn: list[Series], frame: Frame) -> Html:
    """The best value of a single run, below its point, where no other curve can be."""
    if not chart.marked or len(drawn) != 1:
        return Html()
    best = min(drawn[0].points, key=lambda point: point.y)
    x, y = frame.x(best.x), frame.y(best.y)
    anchor = "end" if x > (LEFT + frame.right) / 2 else "start"
    return tag(
        "g",
        tag("circle", tag("title", best.tip), cx=x, cy=y, r=DOT_RADIUS + 1.9, class_="ring"),
        tag("text", number(best.y), x=x, y=y + 19, text_anchor=anchor, class_="best"),
        class_=f"run-{colour(drawn[0].colour)}",
    )


def _described(chart: Chart, drawn: list[Series]) -> str:
    def ends(points: list[Point]) -> str:
        return f"from {number(points[0].y)} to {number(points[-1].y)}"

    curves = "; ".join(f"{series.name} {ends(series.points)}" for series in drawn)
    return f"{chart.title}, {chart.y_label}: {curves}"
