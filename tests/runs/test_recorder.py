"""Lines go to metrics.jsonl and to the listener, which may stop the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinwire.config import MetricsSettings
from thinwire.runs.metrics import read_metrics
from thinwire.runs.recorder import Recorder


def test_the_listener_hears_each_line_and_stops_the_run_by_false(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    listener = lambda line: heard.append(line) or line["step"] < 2  # noqa: E731
    recorder = Recorder(tmp_path, MetricsSettings(), listener)
    with recorder.open():
        recorder.write("train", step=1)
        assert not recorder.stopped_by_listener
        recorder.write("train", step=2)
    assert recorder.stopped_by_listener
    assert read_metrics(tmp_path) == heard == [{"event": "train", "step": step} for step in (1, 2)]


def test_without_a_run_folder_nothing_is_written_or_heard() -> None:
    heard: list[dict[str, Any]] = []
    recorder = Recorder(None, MetricsSettings(), heard.append)
    with recorder.open():
        recorder.write("train", step=1)
        recorder.say_end("tokens spent", {}, interrupted=False, out_of_patience=False)
    assert not heard


def test_the_last_sentences(tmp_path: Path, capsys: Any) -> None:
    recorder = Recorder(tmp_path, MetricsSettings(), None)
    with recorder.open():
        recorder.say_end("interrupted", {}, interrupted=True, out_of_patience=False)
        assert "with --resume goes on" in capsys.readouterr().err.replace("\n", " ")
        recorder.say_end("no new best", {}, interrupted=False, out_of_patience=True)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "Stopped early: no new best." in said and "thinwire eval" in said
