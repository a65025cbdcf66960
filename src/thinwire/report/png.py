"""Draws the charts as a picture with matplotlib (the extra `plot`)."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from thinwire.files import write_whole
from thinwire.report.charts import Chart, Series
from thinwire.report.figures import (
    apart,
    labels,
    linear_ticks,
    log_ticks,
    number,
    tick_label,
)
from thinwire.report.palette import DASHES, LIGHT, colour, dash

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, LINE, BASE = "#16181d", "#5c626d", "#e3e4e2", "#a9adb3"
WIDTH_INCHES, ROW_INCHES, DPI = 10.5, 3.5, 150
LINE_STYLES = dict(zip(DASHES, ("-", "--", ":"), strict=True))
# Part of the height of the axes that a line of text takes.
LINE_HEIGHT = 0.075


def draw(charts: list[Chart], out: Path) -> None:
    """Write the charts to `out`, two in a row.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # Not pyplot: it keeps global state and may look for a screen.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.12, hspace=0.04, wspace=0.03)
    num_rows = -(-len(charts) // 2)
    # The name of a run may contain dollar signs, which must not start a formula, and any script.
    with rc_context({"text.parse_math": False, "font.size": 9.5}), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * num_rows), layout=layout)
        FigureCanvasAgg(figure)
        for i, chart in enumerate(charts):
            _draw(chart, figure.add_subplot(num_rows, 2, i + 1))
        picture = BytesIO()
        figure.savefig(picture, dpi=DPI, format="png")
    write_whole(out, picture.getvalue())


def _draw(chart: Chart, axes: Axes) -> None:
    axes.set_title(chart.title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(BASE)
    axes.tick_params(length=0, colors=SOFT)
    axes.set_xlabel(chart.x_label, color=SOFT)
    axes.set_ylabel(chart.y_label, color=SOFT)
    drawn = [series for series in chart.series if series.points]
    if not drawn:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, chart.empty, transform=axes.transAxes, ha="center", color=SOFT)
        return
    _scales(chart, axes)
    for series in drawn:
        _curve(series, axes, chart.marked)
    if len(chart.series) > 1:
        _direct_labels(drawn, axes)
    elif chart.marked:
        _lowest(drawn[0], axes)


def _scales(chart: Chart, axes: Axes) -> None:
    low, high = chart.y_range
    x_ticks = linear_ticks(0, chart.x_max, most=5)
    y_ticks = (log_ticks if chart.log else linear_ticks)(low, high)
    axes.set_yscale("log" if chart.log else "linear")
    axes.set(xlim=(0, chart.x_max), ylim=(low, high))
    axes.set_xticks(x_ticks, [tick_label(tick) for tick in x_ticks])
    axes.set_yticks(y_ticks, [tick_label(tick) for tick in y_ticks])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)


def _curve(series: Series, axes: Axes, marked: bool) -> None:
    axes.plot(
        [point.x for point in series.points],
        [point.y for point in series.points],
        color=LIGHT[colour(series.colour)],
        linestyle=LINE_STYLES[dash(series.colour)],
        linewidth=1.8,
        marker="o" if (marked and len(series.points) <= 60) or len(series.points) == 1 else "",
        markersize=3.5,
        clip_on=False,
    )


def _direct_labels(drawn: list[Series], axes: Axes) -> None:
    """The name of each curve to the right of the axes, at the height of the curve's end."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends: list[float] = [to_axes.transform(series.points[-1][:2])[1] for series in drawn]
    heights = apart(ends, LINE_HEIGHT, 0.03, 0.97)
    names = labels([series.name for series in drawn])
    for series, name, height in zip(drawn, names, heights, strict=True):
        x, y = series.points[-1][:2]
        shade: dict[str, Any] = {"color": LIGHT[colour(series.colour)]}
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontweight="bold",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "linestyle": ":", "alpha": 0.7, **shade},
            **shade,
        )


def _lowest(series: Series, axes: Axes) -> None:
    best = min(series.points, key=lambda point: point.y)
    right = best.x > axes.get_xlim()[1] / 2
    axes.annotate(
        number(best.y),
        xy=best[:2],
        xytext=(0, -7),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        fontweight="bold",
        color=INK,
    )
