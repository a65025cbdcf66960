"""Eight colours that are easy to distinguish, also for colour-blind people, on white and black."""

from __future__ import annotations

LIGHT = ("#2a78d6", "#eb6834", "#1a9b6c", "#8a4fd0", "#d9479a", "#b98500", "#0f97b5", "#d03b3b")
DARK = ("#5aa0f2", "#f08a5d", "#35c48d", "#b38cf0", "#ee7fbd", "#e0b040", "#45c1de", "#f07a7a")

# The second eight runs are dashed, the third dotted.
DASHES = ("", "6 3", "2 3")


def dash(index: int) -> str:
    """The SVG dash pattern of a report's n-th run."""
    return DASHES[index // len(LIGHT) % len(DASHES)]


def colour(index: int) -> int:
    """The index in the palette of a report's n-th run."""
    return index % len(LIGHT)
