from __future__ import annotations

from pathlib import Path

import pytest

from thinwire.errors import UserError
from thinwire.report.runs import Run, read_runs


def read(path: Path) -> Run:
    (run,) = read_runs([path])
    return run


def test_a_whole_run(make_run) -> None:
    run = read(make_run(lines=None))
    assert run.name == "run"
    assert [line["ppl"] for line in run.valid] == [200, 100, 50, 25]
    assert run.best is run.last is run.valid[-1]
    assert run.totals["tokens"] == 22400
    assert run.tokens_per_second == 2240
    assert run.ending == ("token budget spent", "")
    assert run.facts["model.width"] == 64
    assert run.facts["machine.threads"] == 2


@pytest.mark.parametrize("raw", ["", '{"event": "tra'])
def test_a_run_without_any_line(make_run, raw: str) -> None:
    run = read(make_run(lines=[], raw=raw))
    assert (run.best, run.last, run.totals, run.tokens_per_second) == (None, None, {}, None)
    assert run.ending[0] == "no end recorded"


def test_a_run_without_its_metrics(make_run) -> None:
    path = make_run()
    (path / "metrics.jsonl").unlink()
    assert read(path).valid == []


def test_lines_without_their_numbers_or_done_again_are_left_out(make_run) -> None:
    spent = {"step": 1, "tokens": 560, "seconds": 1.0}
    run = read(
        make_run(
            lines=[
                {"event": "start", "parameters": "<b>"},
                {"event": "valid", **spent, "ppl": 91.0},
                {"event": "valid", **spent, "ppl": 90.0, "ppl_known": float("nan")},
                {"event": "valid", **spent, "ppl": None},
                {"event": "valid", **spent, "ppl": float("inf")},
                {"event": "valid", **spent},
                {"event": "train", **spent, "loss": 5.0},
            ]
        )
    )
    assert run.start == {"event": "start"}
    assert run.valid == [{"event": "valid", **spent, "ppl": 90.0}]
    assert run.train == []


def test_totals_are_the_newest_of_each(make_run) -> None:
    spent = {"step": 1, "tokens": 560, "seconds": 1.0}
    train = {"event": "train", **spent, "loss": 5.0, "tokens_per_second": 560.0, "bytes_sent": 7}
    run = read(make_run(lines=[train, {"event": "valid", **spent, "ppl": 90.0}]))
    assert run.totals["bytes_sent"] == 7


def test_what_a_resumed_run_lost_does_not_count(make_run) -> None:
    spent = {"step": 3, "tokens": 3, "seconds": 3.0}
    run = read(
        make_run(
            lines=[
                {"event": "valid", **spent, "ppl": 50.0},
                {"event": "valid", **spent, "step": 5, "ppl": 40.0},
                {"event": "end", **spent, "step": 5, "reason": "interrupted"},
                {"event": "resume", "step": 3},
                {"event": "valid", **spent, "step": 5, "ppl": 41.0},
                {"event": "end", **spent, "step": 5, "reason": "seconds spent"},
            ]
        )
    )
    assert [line["ppl"] for line in run.valid] == [50, 41]
    assert run.ending == ("time budget spent", "resumed once")


def test_an_unforeseen_end_is_told_as_it_is(make_run) -> None:
    end = {"event": "end", "step": 1, "tokens": 1, "seconds": 1.0, "reason": "the loss is nan"}
    assert read(make_run(lines=[end])).ending == ("stopped", "the loss is nan")


def test_names_tell_runs_apart(make_run) -> None:
    paths = [make_run(name) for name in ("a/run", "b/run", "c")]
    assert [run.name for run in read_runs(paths[1:])] == ["run", "c"]
    assert [run.name for run in read_runs([*paths[:2], paths[0] / "../run"])] == ["a/run", "b/run"]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it has no config\.toml"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        read_runs([tmp_path / "none"])


def test_metrics_of_another_kind(make_run) -> None:
    for i, raw in enumerate(("[1]\n", "{}\n", "7\n")):
        with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
            read(make_run(f"run{i}", lines=[], raw=raw))
