"""The clock of a run and its budget.

`seconds` runs from the first step to the last, and is paused while the worker evaluates or saves;
`wall_seconds` is never paused. In a resumed run both continue from their last values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from thinwire.config import DEFAULT_SECONDS, RunSettings


class Clock:
    """Two stopwatches, started by the first call of `start`."""

    def __init__(self, seconds: float = 0.0, wall_seconds: float = 0.0) -> None:
        self._seconds, self._wall = seconds, wall_seconds
        self._began: float | None = None
        self._paused = 0.0
        self._pause_began: float | None = None

    def start(self) -> None:
        """Start both stopwatches."""
        self._began = perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, `seconds` is paused."""
        self._pause_began = perf_counter()
        try:
            yield
        finally:
            self._paused += perf_counter() - self._pause_began
            self._pause_began = None

    @property
    def wall_seconds(self) -> float:
        """Seconds since the start, including the time before the run was resumed."""
        return self._wall + (perf_counter() - self._began if self._began else 0.0)

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        if self._began is None:
            return self._seconds
        return self._seconds + (self._pause_began or perf_counter()) - self._began - self._paused


class Budget:
    """The limits of a run in seconds, tokens and epochs: the first that is reached ends it."""

    def __init__(self, settings: RunSettings) -> None:
        self.limits = {
            "seconds": settings.seconds,
            "tokens": settings.tokens,
            "epochs": settings.epochs,
        }
        if all(limit is None for limit in self.limits.values()):
            self.limits["seconds"] = DEFAULT_SECONDS

    @property
    def timed(self) -> bool:
        """Whether the clock can end the run, so that repeated runs differ in length."""
        return self.limits["seconds"] is not None

    def progress(self, *, seconds: float, tokens: int, epochs: float) -> float:
        """The part of the budget that is spent; at 1 or more the run is over."""
        spent = {"seconds": seconds, "tokens": tokens, "epochs": epochs}
        return max(spent[name] / limit for name, limit in self.limits.items() if limit is not None)

    def reason(self, *, seconds: float, tokens: int, epochs: float) -> str:
        """The name of the limit that was reached, for the record."""
        spent = {"seconds": seconds, "tokens": tokens, "epochs": epochs}
        reached = [n for n, limit in self.limits.items() if limit is not None and spent[n] >= limit]
        return f"{reached[0]} spent" if reached else "stopped"


class Every:
    """Tells when a clock has passed a multiple of the interval.

    This depends on the clock only, so it happens at the same steps in a resumed run.
    """

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval
        self._passed = self._count(now)

    def due(self, now: float) -> bool:
        """Whether a multiple was passed since the last call."""
        before, self._passed = self._passed, self._count(now)
        return self._passed > before or not self._interval

    def _count(self, now: float) -> float:
        return now // self._interval if self._interval else 0.0
