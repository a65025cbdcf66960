"""What is measured is written whole, in JSON that any parser reads, and survives a crash."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from thinwire.runs.metrics import METRICS_FILE, MetricsWriter, read_metrics


def write(run: Path, *lines: tuple[str, dict[str, Any]]) -> None:
    writer = MetricsWriter(run)
    for event, values in lines:
        writer.write(event, **values)
    writer.close()


def train(*steps: int) -> list[tuple[str, dict[str, Any]]]:
    return [("train", {"step": step, "loss": step / 8}) for step in steps]


def test_lines_keep_their_order_and_keys(tmp_path: Path) -> None:
    write(tmp_path, ("start", {"step": 0, "machine": {"cores": 2}}), *train(1, 2))
    text = (tmp_path / METRICS_FILE).read_text(encoding="utf-8")
    assert text == (
        '{"event": "start", "step": 0, "machine": {"cores": 2}}\n'
        '{"event": "train", "step": 1, "loss": 0.125}\n'
        '{"event": "train", "step": 2, "loss": 0.25}\n'
    )
    assert read_metrics(tmp_path) == [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_null(value: float, tmp_path: Path) -> None:
    write(tmp_path, ("valid", {"step": 1, "ppl": value, "tokens": 3}))
    assert read_metrics(tmp_path) == [{"event": "valid", "step": 1, "ppl": None, "tokens": 3}]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write("train", step=1)
    assert read_metrics(tmp_path) == [{"event": "train", "step": 1}]
    writer.close()


def test_only_appends(tmp_path: Path) -> None:
    write(tmp_path, *train(1))
    before = (tmp_path / METRICS_FILE).read_bytes()
    write(tmp_path, *train(2))
    assert (tmp_path / METRICS_FILE).read_bytes().startswith(before)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_short_by_a_crash_takes_no_other_with_it(cut: int, tmp_path: Path) -> None:
    write(tmp_path, *train(1, 2))
    file = tmp_path / METRICS_FILE
    file.write_bytes(file.read_bytes()[:-cut])
    kept = [1, 2] if cut == 1 else [1]  # 1: only the line's end is missing
    assert [line["step"] for line in read_metrics(tmp_path)] == kept
    write(tmp_path, *train(3))
    assert [line["step"] for line in read_metrics(tmp_path)] == [*kept, 3]


class Disk:
    """A file on a disk with so many bytes left."""

    def __init__(self, free: int) -> None:
        self.free, self.content = free, b""

    def write(self, data: bytes) -> int:
        taken = data[: self.free]
        if data and not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.content += taken
        self.free -= len(taken)
        return len(taken)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("free", [0, 1, 34, 35, 36, 80])
def test_lines_wait_where_the_disk_is_full(
    free: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer, disk = MetricsWriter(tmp_path), Disk(free)
    writer._file.close()
    writer._file = disk  # type: ignore[assignment]
    for step in (1, 2, 3):
        writer.write("train", step=step)  # 29 bytes
    said = capsys.readouterr().err
    assert said.count("Warning: ") == 1
    assert "and lines wait: No space left on device" in " ".join(said.split())
    disk.free = 10_000
    writer.write("train", step=4)
    steps = [json.loads(line)["step"] for line in disk.content.splitlines()]
    assert steps == [1, 2, 3, 4]
    disk.free = 0
    writer.write("train", step=5)
    writer.close()  # that ends no run either
    assert "lines wait" in " ".join(capsys.readouterr().err.split())


def test_what_a_resume_undid_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, ("start", {"step": 0}), *train(1, 2, 3), ("end", {"step": 3}))
    write(tmp_path, ("resume", {"step": 2}), ("start", {"step": 2}), *train(3, 4))
    found = [(line["event"], line["step"]) for line in read_metrics(tmp_path)]
    assert found == [
        ("start", 0),
        ("train", 1),
        ("train", 2),
        ("resume", 2),
        ("start", 2),
        ("train", 3),
        ("train", 4),
    ]


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path, tensorboard=True)
    for event, values in [*train(1, 2), ("end", {"step": 2, "reason": "tokens spent"})]:
        writer.write(event, **values)
    writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["train/loss"]
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(1, 0.125), (2, 0.25)]
