"""`metrics.jsonl`: the measurements of a run, one JSON object per line; the file only grows.

A resumed run appends a `resume` line with the step that it continued from. Lines before it with a
later step belong to steps that were lost, and `read_metrics` leaves them out.

If lines cannot be written, for instance on a full disk, the run continues, and they wait in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from thinwire.config import MetricsSettings
from thinwire.console import warn
from thinwire.errors import UserError, reason_of
from thinwire.files import parse_json

METRICS_FILE = "metrics.jsonl"

OnEvent = Callable[[dict[str, Any]], object]
"""Called with each line when it is written, as a dict; it stops the run by returning False."""


class MetricsWriter:
    """Appends lines to the metrics of a run, and to TensorBoard if that is asked for."""

    def __init__(self, run: Path, *, tensorboard: bool = False) -> None:
        self._board: Any = _board(run) if tensorboard else None
        self._path = run / METRICS_FILE
        cut_short = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        # Bytes that wait to be written. After a crash, first the end of an incomplete line.
        self._waiting = b"\n" if cut_short else b""
        self._warned = False
        self._file = self._path.open("ab", buffering=0)

    def write(self, event: str, **values: Any) -> dict[str, Any]:
        """Write one line, flush it, and return it. NaN and infinity become null."""
        line = {"event": event} | {name: _finite(value) for name, value in values.items()}
        self._waiting += json.dumps(line, allow_nan=False).encode() + b"\n"
        self._flush()
        if self._board is not None and "step" in values:
            for name, value in values.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(f"{event}/{name}", value, values["step"])
        return line

    def _flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not self._warned:
                warn(f"{self._path} cannot be written, and lines wait: {reason_of(error)}")
            self._warned = True
        else:
            self._warned = False

    def close(self) -> None:
        """Close the files; lines that still cannot be written are lost."""
        self._flush()
        with suppress(OSError):
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run, without those of lost steps and without an incomplete line.

    Raises:
        UserError: the file contains something that thinwire does not write.
    """
    file = run / METRICS_FILE
    try:
        return _counting(file.read_text(encoding="utf-8").splitlines() if file.exists() else [])
    except (UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def _counting(texts: Iterable[str]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for text in texts:
        try:
            line = parse_json(text)
        except ValueError:
            continue
        if line["event"] == "resume":
            lines = [
                old for old in lines if old.get("step", 0) <= line["step"] and old["event"] != "end"
            ]
        lines.append(line)
    return lines


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


def _board(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--metrics.tensorboard needs TensorBoard: pip install tensorboard"
        ) from None
    return SummaryWriter(str(run / "tensorboard"))


class Averages:
    """Loss and speed between two `train` lines."""

    def __init__(self, settings: MetricsSettings, tokens: int, seconds: float) -> None:
        self._settings = settings
        self._restart(tokens, seconds)

    def _restart(self, tokens: int, seconds: float) -> None:
        self.steps = 0
        self._loss = 0.0
        self._tokens, self._seconds = tokens, seconds

    def add(self, loss: float) -> None:
        """Count a step with this mean loss per token, in nats."""
        self.steps += 1
        self._loss += loss

    def due(self, seconds: float) -> bool:
        """Whether it is time for a line."""
        if self._settings.every_steps:
            return self.steps >= self._settings.every_steps
        return seconds - self._seconds >= self._settings.every_seconds

    def take(self, tokens: int, seconds: float) -> dict[str, float]:
        """The averages since they were last taken."""
        found = {
            "loss": self._loss / self.steps,
            "tokens_per_second": (tokens - self._tokens) / (seconds - self._seconds),
        }
        self._restart(tokens, seconds)
        return found
