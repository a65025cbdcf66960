"""Measurements that take hours, kept one by one: what was stopped continues where it stopped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from benchmarks.record.write import RESULTS, machine
from thinwire.report.figures import duration


class Kept:
    """Measurements by name, in results/NAME.json as soon as each is done, and never made twice.

    Args:
        name: of the benchmark.
        again: make them even so.
    """

    def __init__(self, name: str, *, again: bool = False) -> None:
        self.file = RESULTS / f"{name}.json"
        self.again = again
        self.found: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            self.found = json.loads(self.file.read_text())["measurements"]

    def measure(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> None:
        """Keep what `measure` finds, with its origin, unless that is there already."""
        if key in self.found and not self.again:
            return
        print(f"{key} ...", file=sys.stderr, flush=True)
        began = perf_counter()
        where = machine()
        made_on = f"{where['cpu']}, {where['vector_instructions']}"
        origin = {"commit": where["commit"], "date": where["date"], "where": made_on}
        self.found[key] = {**measure(), **origin}
        self.file.parent.mkdir(exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"machine": where, "measurements": self.found}) + "\n")
        os.replace(temporary, self.file)
        print(f"... {duration(perf_counter() - began)}", file=sys.stderr, flush=True)

    def origins(self, part: str = "") -> str:
        """With which code, when and where it was measured: all with this part in their names."""
        made = set()
        for name, one in self.found.items():
            if part in name:
                machine = f" ({one['where']})" if "where" in one else ""
                made.add(f"{one['commit']} on {one['date']}{machine}")
        return ", ".join(sorted(made))
