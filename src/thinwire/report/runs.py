"""Reads a run folder for a report: settings, curves, and how the run ended.

A run that still trains, was killed, or has never validated is accepted too. An entry that should be
a number but is not is left out, and so is a line that lacks a number of its curve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from thinwire.config import read_toml
from thinwire.errors import UserError
from thinwire.runs.metrics import read_metrics

CONFIG_FILE = "config.toml"

Line = dict[str, Any]

NUMBERS = {
    *("step", "tokens", "seconds", "wall_seconds", "loss", "tokens_per_second"),
    *("ppl", "ppl_known", "tokens_scored", "parameters", "workers"),
    *("bytes_sent", "bytes_dense", "exchange_seconds"),
}

ENDINGS = {
    "seconds spent": "time budget spent",
    "tokens spent": "token budget spent",
    "epochs spent": "all epochs done",
    "interrupted": "interrupted",
}


@dataclass(frozen=True)
class Run:
    """The settings and the measurements of one run.

    Attributes:
        path: the run folder.
        name: a short name, which no other run of the report has.
        settings: the values of config.toml by `section.key`.
        start: the newest `start` line; empty if there is none.
        train, valid: the lines in the order of steps, with finite numbers.
        end: the `end` line; None if there is none.
        num_resumes: number of times that the run was resumed.
    """

    path: Path
    name: str
    settings: dict[str, Any]
    start: Line
    train: list[Line]
    valid: list[Line]
    end: Line | None
    num_resumes: int

    @property
    def best(self) -> Line | None:
        """The validation with the lowest perplexity."""
        return min(self.valid, key=lambda line: float(line["ppl"]), default=None)

    @property
    def last(self) -> Line | None:
        """The last validation."""
        return self.valid[-1] if self.valid else None

    @property
    def totals(self) -> Line:
        """The newest values of everything that grows during a run: tokens, seconds, bytes."""
        newest = [*self.train[-1:], *self.valid[-1:], *([self.end] if self.end else [])]
        totals: Line = {}
        for line in sorted(newest, key=lambda line: float(line["tokens"])):
            totals |= line
        return totals

    @property
    def tokens_per_second(self) -> float | None:
        """The mean speed of the whole run."""
        totals = self.totals
        return totals["tokens"] / totals["seconds"] if totals.get("seconds") else None

    @property
    def ending(self) -> tuple[str, str]:
        """The reason for its end in a few words, and details."""
        resumed = f"resumed {_times(self.num_resumes)}" if self.num_resumes else ""
        if self.end is None:
            return "no end recorded", "it still runs, or was cut off"
        reason = str(self.end.get("reason", "for no recorded reason"))
        if reason in ENDINGS:
            return ENDINGS[reason], resumed
        return "stopped", reason

    @property
    def facts(self) -> dict[str, Any]:
        """Settings, versions and machine: everything that may explain how two runs differ."""
        about = {part: self.start.get(part) for part in ("versions", "machine")}
        return self.settings | _flat({k: v for k, v in about.items() if isinstance(v, dict)})


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Read some runs; a folder that is named twice is read once.

    Raises:
        UserError: a folder is not a run folder, or its settings cannot be read.
    """
    paths = {folder.resolve(): folder for folder in folders}
    return [_read(path, name) for path, name in zip(paths.values(), _names([*paths]), strict=True)]


def _read(path: Path, name: str) -> Run:
    if not path.is_dir():
        raise UserError(f"{path} is not a run folder: there is no such folder")
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"{path} is not a run folder: it has no {CONFIG_FILE}")
    lines = read_metrics(path)
    by_event: dict[str, list[Line]] = {}
    for line in lines:
        by_event.setdefault(str(line["event"]), []).append(_sound(line))
    return Run(
        path=path,
        name=name,
        settings=_flat(read_toml(path / CONFIG_FILE)),
        start=by_event.get("start", [{}])[-1],
        train=_with(by_event.get("train", []), "loss", "tokens_per_second"),
        valid=_with(by_event.get("valid", []), "ppl"),
        end=next(iter(_with(by_event.get("end", []))[-1:]), None),
        num_resumes=len(by_event.get("resume", [])),
    )


def _sound(line: Line) -> Line:
    """The line without entries that should be finite numbers, 0 or more, and are not."""
    return {k: v for k, v in line.items() if k not in NUMBERS or _is_number(v)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < inf


def _with(lines: list[Line], *keys: str) -> list[Line]:
    """The lines that have these and the common numbers; for each step the last such line."""
    needed = {"step", "tokens", "seconds", *keys}
    return [*{line["step"]: line for line in lines if needed <= line.keys()}.values()]


def _flat(sections: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that make all names different."""
    length, longest = 1, max((len(path.parts) for path in paths), default=1)
    names = ["/".join(path.parts[-length:]) for path in paths]
    while len(set(names)) < len(names) and length < longest:
        length += 1
        names = ["/".join(path.parts[-length:]) for path in paths]
    # A file name on disk may be invalid Unicode, which a page cannot contain.
    return [name.encode("utf-8", "replace").decode("utf-8") for name in names]
