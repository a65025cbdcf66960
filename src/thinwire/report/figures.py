"""Formats numbers for a report: a few digits and a unit, in the same way everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import NamedTuple


class Unit(NamedTuple):
    """A unit: a large value is divided by `size` and shown with `name`."""

    size: float
    name: str


TIMES = (Unit(1, "s"), Unit(60, "min"), Unit(3600, "h"))
COUNTS = (Unit(1, ""), Unit(1e3, "thousands"), Unit(1e6, "millions"), Unit(1e9, "billions"))
BYTES = (Unit(1, "B"), Unit(1e3, "kB"), Unit(1e6, "MB"), Unit(1e9, "GB"), Unit(1e12, "TB"))


def unit_for(largest: float, units: tuple[Unit, ...]) -> Unit:
    """The largest unit in which the value is at least 2; if there is none, the smallest unit."""
    return next((unit for unit in reversed(units) if largest >= 2 * unit.size), units[0])


def number(value: float) -> str:
    """Four digits, or all digits before the point: 0.01235, 92.70, 118.9, 34,892,206."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def count(value: float) -> str:
    """A number of tokens or parameters: 950, 20.2 k, 9.1 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return _short(value / size) + letter
    return _short(value)


def num_bytes(value: float) -> str:
    """A number of bytes, as 1.38 GB."""
    unit = next((unit for unit in reversed(BYTES) if value >= unit.size), BYTES[0])
    return f"{_short(value / unit.size)} {unit.name}"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """A duration, as 3.6 s, 12 min 30 s or 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers in [low, high], at equal distances."""
    rough = (high - low) / most
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [k * step for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers in [low, high] for a logarithmic axis."""
    powers = [10.0**p for p in range(floor(log10(low)), ceil(log10(high)) + 1)]
    for factors in ((1, 2, 5), (1,)):
        ticks = [f * power for power in powers for f in factors if low <= f * power <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 3:
        return linear_ticks(low, high)
    return ticks[:: ceil(len(ticks) / most)]


def tick_label(value: float) -> str:
    """A tick in full, without rounding errors; large numbers are shortened."""
    return count(value) if value >= 10_000 else f"{value:,.10g}"


LED_BY = 6
"""The number of common letters that are shown before the first different letter of two names."""


def shortened(name: str, longest: int = 22) -> str:
    """A name with its middle left out if it is too long for a chart."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def labels(names: Sequence[str], longest: int = 22) -> list[str]:
    """The names, shortened if they are too long for a chart; different names get different labels.

    If different names would get the same label, the part that begins just before their first
    difference is shown. If that part is the same too, they are numbered.
    """
    found = [shortened(name, longest) for name in names]
    for alike in _alike(found, names):
        start = max(0, _first_difference([names[i] for i in alike]) - LED_BY)
        for i in alike:
            found[i] = _from(names[i], start, longest)
    left = sorted(i for alike in _alike(found, names) for i in alike)
    number_of = {name: n for n, name in enumerate(dict.fromkeys(names[i] for i in left), 1)}
    for i in left:
        number = f" ({number_of[names[i]]})"
        found[i] = shortened(names[i], longest - len(number)) + number
    return found


def _alike(labels: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """The indices of labels that stand for several different names, grouped by label."""
    indices: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        indices.setdefault(label, []).append(i)
    return [found for found in indices.values() if len({names[i] for i in found}) > 1]


def _first_difference(names: Sequence[str]) -> int:
    shortest = min(map(len, names))
    return next((i for i in range(shortest) if len({name[i] for name in names}) > 1), shortest)


def _from(name: str, start: int, longest: int) -> str:
    part = name[start:] if start == 0 else f"…{name[start:]}"
    return part if len(part) <= longest else f"{part[: longest - 1]}…"


def apart(positions: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move the positions as little as possible, so that they are `gap` apart and in [low, high].

    This is isotonic regression: after i gaps are subtracted from the i-th position, the positions
    only have to be non-decreasing, and pooling adjacent violators gives the least-squares solution.
    """
    order = sorted(range(len(positions)), key=positions.__getitem__)
    pools: list[tuple[float, int]] = []  # mean, size
    for rank, i in enumerate(order):
        mean, size = positions[i] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            before, num_before = pools.pop()
            mean = (mean * size + before * num_before) / (size + num_before)
            size += num_before
        pools.append((mean, size))
    lowered = [mean for mean, size in pools for _ in range(size)]
    highest = high - (len(positions) - 1) * gap
    moved = dict(zip(order, (max(low, min(y, highest)) for y in lowered), strict=True))
    return [moved[i] + order.index(i) * gap for i in range(len(positions))]
