"""Efficiency over the rate of the links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.predicted.devices import Device
from benchmarks.predicted.steps import BITS_PER_SECOND, Way, least
from thinwire.plan.traffic import Sent
from thinwire.report.palette import LIGHT


def draw(
    devices: Sequence[Device], sent_by: Mapping[int, Mapping[Way, Sent]], target: Path
) -> None:
    """Efficiency over the rate of the links: a row of charts for each number of workers."""
    figure, grid = plt.subplots(
        len(sent_by),
        len(devices),
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(11, 9),
        dpi=150,
    )
    for row, W in zip(grid, sent_by, strict=True):
        for axes, device in zip(row, devices, strict=True):
            draw_one(axes, device, sent_by[W], W)
            axes.set_title(f"{device.name}, {W} workers", fontsize=10)
        row[0].set_ylabel("efficiency, predicted")
    for axes in grid[-1]:
        axes.set_xlabel("link of each worker, bit/s")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(target)
    plt.close(figure)
    print(target)


def draw_one(axes: Axes, device: Device, sent_by: Mapping[Way, Sent], workers: int) -> None:
    rates = BITS_PER_SECOND[(BITS_PER_SECOND >= 1e7) & (BITS_PER_SECOND <= 4e11)]
    curves = {
        "sync": ("sync", 1),
        "periodic": ("periodic", 1),
        "async, one server": ("async", 1),
        "async, a server for each worker": ("async", workers),
    }
    for (name, (exchange, servers)), colour in zip(curves.items(), LIGHT, strict=False):
        steps = [
            least(device.machine, exchange, sent_by, device.link(rate / 8), workers, servers)
            for rate in rates
        ]
        shares = [device.machine.step / step for step in steps]
        dashes = "--" if servers > 1 else "-"
        axes.plot(rates, shares, dashes, color=colour, linewidth=1.8, label=name)
    axes.set(xscale="log", yscale="log", ylim=(1e-4, 2.0))
    ticks = {1e7: "10 M", 1e8: "100 M", 1e9: "1 G", 1e10: "10 G", 1e11: "100 G"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
