"""Several workers as real processes: by --workers and by torchrun, and what ends them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from thinwire.errors import UserError
from thinwire.launch import rendezvous, replica
from thinwire.launch.local import train_on_this_machine
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.metrics import read_metrics

SMALL = [
    *("--threads", "1", "--model.width", "16", "--loss.samples", "20", "--data.batch", "4"),
    *("--data.length", "7", "--metrics.every_steps", "1", "--eval.tokens", "500"),
    *("--optim.schedule", "constant"),
]
STEP_TOKENS = 56
ENDLESS = ["--tokens", str(10**9)]
TWO = ["--workers", "2"]
WORKERS = ["worker-0.json", "worker-1.json"]


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["event"] == event]


def steps(run: Path) -> list[int]:
    return [line["step"] for line in lines(run, "train")]


# By --workers


def test_two_workers_here(toy_data: Path, tmp_path: Path, thinwire: Any) -> None:
    tokens = 12 * STEP_TOKENS
    flags = [*SMALL, *TWO, "--exchange", "periodic", "--check-replicas", "--tokens", tokens]
    done = thinwire("train", toy_data, "--out", "deep/run", *flags, "--codec", "bf16")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert "2 workers (periodic, bf16)" in done.stderr
    run = tmp_path / "deep" / "run"
    assert lines(run, "start")[0]["workers"] == 2
    # Periodic workers meet at the turns of four fragments in an interval of 4 steps.
    assert steps(run) == list(range(1, 13))
    valid, end = read_metrics(run)[-2:]
    assert (valid["event"], valid["step"], valid["tokens"]) == ("valid", 12, tokens)
    assert valid["ppl"] > 1 and valid["ppl_known"] > 1 and valid["tokens_scored"] >= 500
    assert (end["event"], end["tokens"], end["reason"]) == ("end", tokens, "tokens spent")
    for line in (lines(run, "train")[-1], end):
        assert all(line[name] > 0 for name in ("bytes_sent", "bytes_received", "bytes_dense"))
        assert 0 < line["exchange_seconds"] < line["wall_seconds"] + 5
    assert Checkpoints(run).load().step == 12


def test_ctrl_c_saves_and_resume_goes_on(toy_data: Path, tmp_path: Path, launch: Any) -> None:
    """Until the command is killed itself; then none of its workers is left either."""
    run = tmp_path / "run"
    command = launch("-m", "thinwire", "train", toy_data, "--out", "run", *SMALL, *TWO, *ENDLESS)
    command.workers(2, WORKERS)
    command.until(lambda: run.exists() and len(steps(run)) > 5)
    command.process.send_signal(signal.SIGINT)
    assert command.end(30) == 130
    assert command.said.count("thinwire: interrupted") == 1 and "Traceback" not in command.said
    assert command.all_gone()
    (end,) = lines(run, "end")
    assert end["reason"] == "interrupted" and Checkpoints(run).newest == end["step"]

    again = launch("-m", "thinwire", "train", toy_data, "--out", "run", "--resume")
    again.workers(2, WORKERS)
    again.until(lambda: steps(run)[-1] > end["step"] + 3)
    again.process.kill()
    again.process.wait()
    assert again.all_gone()
    assert f"Going on from step {end['step']}, in run" in again.said
    assert steps(run) == list(range(1, steps(run)[-1] + 1))


def test_a_worker_that_is_killed_is_named(toy_data: Path, tmp_path: Path, launch: Any) -> None:
    """Even the first one, which keeps the record."""
    run, rank = tmp_path / "run", 0
    flags = [*SMALL, *TWO, *ENDLESS, "--exchange", "sync"]
    command = launch("-m", "thinwire", "train", toy_data, "--out", "run", *flags)
    pids = command.workers(2, WORKERS)
    command.until(lambda: run.exists() and steps(run))
    os.kill(pids[rank], signal.SIGKILL)
    assert command.end(40) == 2  # sooner than the time-out, which is a minute
    sentence = command.said.splitlines()[-1]
    assert sentence.startswith("thinwire: ") and f"worker {rank} of 2" in sentence
    assert "was killed by SIGKILL; go on with --resume" in sentence
    assert "Traceback" not in command.said
    assert command.all_gone()


def test_a_worker_that_is_stopped_is_named(toy_data: Path, tmp_path: Path, launch: Any) -> None:
    """Within the time-out and the roll-call, which here takes as long."""
    run = tmp_path / "run"
    patience = ["--exchange.timeout_seconds", "2"]
    command = launch(
        "-m", "thinwire", "train", toy_data, "--out", "run", *SMALL, *TWO, *ENDLESS, *patience
    )
    pids = command.workers(2, WORKERS)
    command.until(lambda: run.exists() and steps(run))
    os.kill(pids[1], signal.SIGSTOP)
    assert command.end(50) == 2
    sentence = command.said.splitlines()[-1]
    assert "worker 1 of 2" in sentence and "has stopped answering" in sentence
    assert "Traceback" not in command.said
    assert command.all_gone()


# Stands in for a worker: it leaves a word or none, and ends as it is told by its rank.
MEMBER = """
import json, os, sys
from pathlib import Path
arguments = json.loads(Path(sys.argv[3]).read_text())["arguments"]
assert (Path(arguments["folder"]) / "settings.toml").read_text().count("threads = 2") == 1
status, word = json.loads(os.environ["ENDS"])[arguments["rank"]]
if word:
    Path(arguments["folder"], f"worker-{arguments['rank']}.message").write_text(word)
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [
        ([[0, ""], [0, ""]], None),
        ([[2, "the disk is full"], [2, "worker 0: the disk is full"]], r".*the disk is full$"),
        ([[0, ""], [2, "no such thing"]], r"no such thing$"),
        ([[0, ""], [-9, ""]], r"worker 1 of 2 was killed by SIGKILL; go on with --resume$"),
        ([[1, ""], [0, ""]], r"worker 0 of 2 ended with status 1; go on with --resume$"),
    ],
    ids=str,
)
def test_what_is_said_of_workers_that_fail(
    ends: list[Any],
    sentence: str | None,
    tmp_path: Path,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, by the command: what the first one to fail has said, or how it ended."""
    (tmp_path / "member.py").write_text(MEMBER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/member.py" "$@"\n')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("ENDS", json.dumps(ends))
    config = tiny(run={"workers": 2, "threads": 2})
    with nullcontext() if sentence is None else pytest.raises(UserError, match=f"^{sentence}"):
        train_on_this_machine(Path("data"), tmp_path / "run", config, resume=False)


def test_what_the_system_refuses_is_a_sentence(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the others too, who would only see that a worker has gone."""
    words = []

    class Alone:
        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def post_failure(self, sentence: str) -> None:
            words.append(sentence)

        def close(self) -> None:
            words.append("closed")

    def refuse(*args: Any, **options: Any) -> None:
        raise NotADirectoryError(20, "Not a directory", "file/run")

    monkeypatch.setattr(rendezvous, "C10d", Alone)
    monkeypatch.setattr(replica, "train", refuse)
    (tmp_path / "settings.toml").write_text(tiny(run={"workers": 1}).to_toml())
    with pytest.raises(SystemExit) as caught:
        replica.run_replica("data", "file/run", False, 0, str(tmp_path))
    assert caught.value.code == 2
    assert words == ["file/run: Not a directory", "closed"]
    assert (tmp_path / "worker-0.message").read_text() == "file/run: Not a directory"


# By torchrun


def test_torchrun_restarts_and_the_run_goes_on(toy_data: Path, tmp_path: Path, launch: Any) -> None:
    """A worker is killed; torchrun starts all again, and they go on from the newest step."""
    run = tmp_path / "run"
    flags = [*SMALL, "--seconds", "2", "--checkpoint.every_seconds", "0.2"]
    patience = ["--exchange.timeout_seconds", "2"]
    command = launch(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2),
        *("--max-restarts", 1, "-m", "thinwire", "train", toy_data, "--out", "run"),
        *(*flags, *patience),
    )
    pids = command.workers(2, ["RANK=0", "RANK=1"])
    command.until(lambda: run.exists() and Checkpoints(run).newest)
    os.kill(pids[1], signal.SIGKILL)
    assert command.end(60) == 0, command.said
    resumed = lines(run, "resume")
    assert len(resumed) == 1 and resumed[0]["step"] > 0
    assert steps(run) == list(range(1, steps(run)[-1] + 1))
    start, again = lines(run, "start")
    assert start["workers"] == again["workers"] == 2
    assert lines(run, "end")[-1]["reason"] == "seconds spent"
    assert command.all_gone()


def test_torchrun_of_one_worker(toy_data: Path, tmp_path: Path, launch: Any) -> None:
    command = launch(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1),
        *("-m", "thinwire", "train", toy_data, "--out", "run"),
        *(*SMALL, "--tokens", "2000", "--exchange", "auto"),
    )
    assert command.end(60) == 0, command.said
    assert lines(tmp_path / "run", "start")[0]["workers"] == 1
    assert lines(tmp_path / "run", "end")[0]["reason"] == "tokens spent"


def test_torchruns_report_ends_with_the_sentence(
    toy_data: Path, tmp_path: Path, launch: Any
) -> None:
    command = launch(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1),
        *("-m", "thinwire", "train", toy_data, "--out", "run", "--exchange", "async"),
    )
    assert command.end(60) == 1
    _, _, report = command.said.partition("Root Cause")
    assert "use thinwire serve and thinwire work, not torchrun" in report


# Which way it starts


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torchrun had started this process."""
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """How runs start, and with how many workers by their settings; none does start."""
    from thinwire.launch import local
    from thinwire.training import loop

    taken: list[tuple[str, int]] = []

    def way(name: str) -> Callable[..., None]:
        return lambda data, out, config, **_: taken.append((name, config.run.workers))

    monkeypatch.setattr(replica, "train_under_torchrun", way("torchrun"))
    monkeypatch.setattr(local, "train_on_this_machine", way("here"))
    monkeypatch.setattr(loop, "train", way("alone"))
    return taken


def call(*args: object) -> int:
    from thinwire.cli.app import main

    return main([str(arg) for arg in args])


def test_which_way_a_run_starts(
    toy_data: Path, tmp_path: Path, ways: list[tuple[str, int]]
) -> None:
    assert call("train", toy_data, "--out", tmp_path / "run") == 0
    assert call("train", toy_data, "--out", tmp_path / "run", "--workers", 3) == 0
    assert ways == [("alone", 1), ("here", 3)]


def test_under_torchrun_its_own_number_counts(
    toy_data: Path,
    tmp_path: Path,
    ways: list[tuple[str, int]],
    torchrun: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another number is refused; a file, as of a run of other workers, may say what it likes."""
    assert call("train", toy_data, "--out", tmp_path / "run", "--workers", 3) == 2
    said = capsys.readouterr().err
    assert "torchrun has started 2 workers, so --workers 3 cannot be: leave it out" in said
    (tmp_path / "a.toml").write_text("[run]\nworkers = 5\nseed = 3\n")
    flags = ["--config", tmp_path / "a.toml"]
    assert call("train", toy_data, "--out", tmp_path / "run", *flags) == 0
    assert ways == [("torchrun", 1)]


def test_async_is_not_for_torchrun(
    toy_data: Path, tmp_path: Path, torchrun: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", toy_data, "--out", tmp_path / "run", "--exchange", "async") == 2
    assert "use thinwire serve and thinwire work, not torchrun" in capsys.readouterr().err
