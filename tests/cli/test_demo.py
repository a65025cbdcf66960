"""The demo, on a toy text in place of Shakespeare: nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from thinwire.cli import app, demo
from thinwire.config import RunConfig
from thinwire.errors import UserError


@pytest.fixture
def with_text(tmp_path: Path, book: Path) -> Path:
    """A demo's folder that holds its text already."""
    out = tmp_path / "a b"
    (out / "text").mkdir(parents=True)
    shutil.copy(book, out / "text/shakespeare.txt")
    return out


def test_the_whole_story_and_once_more(thinwire, with_text: Path) -> None:
    first = thinwire("demo", "--out", with_text.name, "--seconds", 0.5)
    assert first.returncode == 0, first.stderr
    for word in ("1/6 Fetch", "2/6 Prepare", "3/6 Train", "4/6 Evaluate", "5/6 Gen", "6/6 Report"):
        assert word in first.stderr
    assert "$ thinwire train 'a b/data' --out 'a b/run' --seconds 0.5 --" in first.stderr
    assert "test perplexity" in first.stderr
    assert "tokens a second" in first.stderr
    perplexity, *_, page = first.stdout.splitlines()
    assert perplexity.startswith("perplexity")
    assert demo.PROMPT in first.stdout
    assert page == "a b/run/report.html"
    assert {path.name for path in with_text.iterdir()} == {"text", "data", "run"}
    assert (with_text / "run/report.html").exists()

    prepared = (with_text / "data/meta.json").stat().st_mtime_ns
    second = thinwire("demo", "--out", with_text.name, "--seconds", 1)
    assert second.returncode == 0, second.stderr
    assert "$ thinwire train 'a b/data' --out 'a b/run' --resume --seconds 1\n" in second.stderr
    assert (with_text / "data/meta.json").stat().st_mtime_ns == prepared
    lines = (with_text / "run/metrics.jsonl").read_text().splitlines()
    ends = [line for line in map(json.loads, lines) if line["event"] == "end"]
    assert [end["reason"] for end in ends] == ["seconds spent"] * 2
    assert ends[0]["seconds"] >= 0.5
    assert ends[1]["seconds"] >= 1


def test_the_commands_of_a_first_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str, out: Path) -> None:
        raise UserError(f"no network, so no {name} in {out}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thinwire.data.fetch.fetch", refuse)
    assert app.main(["demo"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "$ thinwire fetch shakespeare --out thinwire-demo/text\n" in shown.err
    assert shown.err.endswith("thinwire: no network, so no shakespeare in thinwire-demo/text\n")
    assert list(tmp_path.iterdir()) == []


def test_no_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["demo", "--out", str(tmp_path / "out"), "--seconds", "0"]) == 2
    assert "a budget must be above 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_there_keeps_its_settings() -> None:
    assert demo._training(None, True) == ["--resume"]
    assert demo._training(300.0, True) == ["--resume", "--seconds", "300"]


def test_settings_are_some_that_exist() -> None:
    known = {
        f"{section}.{key}" for section, config in vars(RunConfig()).items() for key in vars(config)
    }
    assert known > demo.SETTINGS.keys()
    flags = demo._training(None, False)
    assert flags[:2] == ["--seconds", "120"]
    assert flags[-2:] == ["--eval.every_seconds", "15"]
