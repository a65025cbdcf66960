"""Run folders with a known history."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Line = dict[str, Any]
MakeRun = Callable[..., Path]

START: Line = {
    "event": "start",
    "step": 0,
    "versions": {"thinwire": "0.1.0"},
    "machine": {"threads": 2, "device": "cpu"},
    "workers": 1,
    "parameters": 34_892_206,
}


def history(num_valid: int = 4, ppl: float = 400.0, **more: Any) -> list[Line]:
    """A run that halves its perplexity from one validation to the next, and ends as planned."""
    lines = [START]
    for i in range(1, num_valid + 1):
        spent = {"step": 10 * i, "tokens": 5600 * i, "seconds": 2.5 * i, "wall_seconds": 3.0 * i}
        spent |= {key: value * i for key, value in more.items()}
        rates = {"loss": 6.5 - 0.5 * i, "tokens_per_second": 2240.0, "lr": 0.002}
        lines.append({"event": "train", **spent, **rates})
        found = {"ppl": ppl / 2**i, "ppl_known": 0.9 * ppl / 2**i, "tokens_scored": 5056}
        lines.append({"event": "valid", **spent, **found})
    return [*lines, {"event": "end", "reason": "tokens spent", **spent}]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run folder: `make_run(name, lines, width=..., raw=...)`."""

    def make(
        name: str = "run",
        lines: list[Line] | None = None,
        *,
        width: int = 64,
        fingerprint: str = "ede2",
        raw: str = "",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(
            f'[model]\nkind = "lstm"\nlayers = 1\nwidth = {width}\ntied = false\n'
            f'[corpus]\npath = "/data"\nfingerprint = "{fingerprint}"\n'
        )
        lines = history() if lines is None else lines
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text + raw)
        return folder

    return make
