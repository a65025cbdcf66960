"""Servers and workers as real processes: what they say, how they end, and who may be killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from thinwire.cli.app import main
from thinwire.data.prepare import prepare
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.metrics import read_metrics

SMALL = [
    *["--threads", "1", "--model.width", "16", "--loss.samples", "20"],
    *["--data.batch", "4", "--data.length", "7"],
    *["--metrics.every_steps", "20", "--eval.tokens", "200"],
]
STEP_TOKENS = 28
# Longer than any of these runs; a hang is a failure.
PATIENCE_SECONDS = 60.0
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def running(*args: object) -> Iterator[subprocess.Popen[str]]:
    """`thinwire ARG...`, ended with all its children when the block is left."""
    command = [sys.executable, "-m", "thinwire", *map(str, args)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it says until it ends, with this status."""
    out, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, said
    assert "Traceback" not in said and out == ""
    return said


def until(holds: Any) -> Any:
    """Wait for what `holds` returns to be true; return that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came true")


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["event"] == event]


def has_trained(run: Path, count: int = 1) -> bool:
    return len(lines(run, "train")) >= count


def children(process: subprocess.Popen[str]) -> dict[str, int]:
    """The processes that it has started, by their names: server, worker-0, ..."""
    found = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"thinwire.cli.child" in words:
                file = words[words.index(b"thinwire.cli.child") + 1]
                found[Path(file.decode()).stem] = int(folder.name)
    return found


def replaced(process: subprocess.Popen[str], name: str, before: dict[str, int]) -> bool:
    """Whether another process has come in place of the one there was `before`."""
    return children(process).get(name, before[name]) != before[name]


def train(data: Path, out: Path, *args: object) -> list[object]:
    settings = [*SMALL, "--workers", 2, "--exchange", "async"]
    return ["train", data, "--out", out, *settings, *args]


@LINUX
def test_workers_that_die_or_stop_are_replaced_and_so_is_the_server(
    toy_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args = train(toy_data, run, "--seconds", 1000, "--exchange.timeout_seconds", 3)
    with running(*args) as process:
        until(lambda: has_trained(run))
        before = children(process)
        os.kill(before["worker-1"], signal.SIGKILL)
        os.kill(before["worker-0"], signal.SIGSTOP)
        until(lambda: replaced(process, "worker-1", before))
        step = lines(run, "train")[-1]["step"]
        until(lambda: lines(run, "train")[-1]["step"] > step + 40)
        until(lambda: replaced(process, "worker-0", before))
        process.send_signal(signal.SIGINT)
        said = finished(process, 130)
    for name in ("worker 0", "worker 1"):
        assert f"{name} was killed by SIGKILL; it is started again." in said
    assert said.count("interrupted") == 1
    end = lines(run, "end")[0]
    assert end["reason"] == "interrupted"
    assert Checkpoints(run).newest == end["step"]

    tokens = end["tokens"] + 400 * STEP_TOKENS
    args = ["train", toy_data, "--out", run, "--resume", "--tokens", tokens]
    args += ["--exchange.timeout_seconds", 60, "--checkpoint.every_seconds", 0.2]
    with running(*args) as process:
        until(lambda: (Checkpoints(run).newest or 0) > end["step"])
        os.kill(children(process)["the-server"], signal.SIGKILL)
        said = finished(process)
    assert "The run was cut off; what came after step" in said
    assert f"Going on from step {end['step']}, in" in said
    assert "the server was killed by SIGKILL; it is started again." in said
    assert len(lines(run, "resume")) == 2
    last = read_metrics(run)[-2:]
    assert [line["event"] for line in last] == ["valid", "end"]
    assert (last[1]["reason"], last[1]["step"]) == ("tokens spent", end["step"] + 400)
    assert Checkpoints(run).newest == last[1]["step"]
    assert last[1]["bytes_sent"] > end["bytes_sent"] and last[1]["staleness"]["max"] >= 1


@LINUX
def test_one_of_two_servers_is_killed_asked_to_stop_and_killed_at_the_end(
    toy_data: Path, tmp_path: Path
) -> None:
    """The second server: it comes back with the rows of the newest checkpoint or save."""
    run = tmp_path / "run"
    budget = ["--tokens", 600 * STEP_TOKENS, "--exchange.servers", 2]
    args = train(toy_data, run, *budget, "--checkpoint.every_seconds", 1000)
    with running(*args) as process:
        # They are looked for while nothing moves, so that the run is not over meanwhile.
        first = until(lambda: len(found := children(process)) == 4 and found)
        until(lambda: has_trained(run))
        os.kill(first["server-1"], signal.SIGKILL)
        second = until(lambda: replaced(process, "server-1", first) and children(process))
        step = lines(run, "train")[-1]["step"]
        until(lambda: lines(run, "train")[-1]["step"] > step + 40)
        # Nothing is due: it is saved because that server is about to leave.
        assert not Checkpoints(run).newest
        os.kill(second["server-1"], signal.SIGTERM)
        third = until(lambda: replaced(process, "server-1", second) and children(process))
        assert Checkpoints(run).newest
        until(lambda: lines(run, "train")[-1]["step"] >= 580)
        with suppress(ProcessLookupError):
            os.kill(third["server-1"], signal.SIGKILL)
        said = finished(process)
    assert "server 1 was killed by SIGKILL; it is started again." in said
    assert "has been started again; its rows are those of the last evaluation or save" in said
    assert "server 1 ended with status 130; it is started again." in said
    end = read_metrics(run)[-2:]
    assert [line["event"] for line in end] == ["valid", "end"] and end[0]["ppl"] < 200
    lost = Checkpoints(run).load().state["lost_tokens"]
    assert lost > 0 and "tokens is lost, and the run trains as many more" in said
    assert end[1]["step"] == Checkpoints(run).newest == 600 + ceil(lost / STEP_TOKENS)
    for tensor in Checkpoints(run).load().open("model").values():
        assert tensor.abs().max() < 100


@LINUX
def test_a_run_that_cannot_be_saved_at_the_end_does_not_end_well(
    toy_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args = train(toy_data, run, "--seconds", 1000, "--checkpoint.every_seconds", 1000)
    with running(*args) as process:
        until(lambda: has_trained(run))
        # Room for a few more lines of metrics, and not for the model (8 kB of embeddings alone).
        room = (run / "metrics.jsonl").stat().st_size + 4000
        resource.prlimit(children(process)["the-server"], resource.RLIMIT_FSIZE, (room, room))
        process.send_signal(signal.SIGINT)
        said = finished(process, 2)
    assert "could not be saved" in said


@LINUX
def test_nothing_is_left_when_it_is_killed(toy_data: Path, tmp_path: Path) -> None:
    with running(*train(toy_data, tmp_path / "run", "--seconds", 1000)) as process:
        pids = until(lambda: len(found := children(process)) == 3 and found.values())
        process.kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_what_the_user_can_mend_is_said_once(toy_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run).mkdir()
    (run / "config.toml").write_text("", encoding="utf-8")
    with running(*train(toy_data, run, "--tokens", 100)) as process:
        said = finished(process, 2)
    assert said.count("already holds a run") == 1 and len(said.splitlines()) == 1


# Servers and workers as commands of their own


@contextmanager
def serving(data: Path, run: Path, *args: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`thinwire serve`, and its address."""
    command = ["serve", data, "--out", run, "--listen", "127.0.0.1:0", *SMALL, *args]
    with running(*command) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Leader at "):
                break
        else:
            raise AssertionError("the server does not say where it serves")
        yield process, line.split()[-1]


def test_serve_and_work(toy_data: Path, tmp_path: Path, book: Path) -> None:
    """Workers come and go; one with other data is refused, and one without the key gets nothing."""
    run, key, other = tmp_path / "run", tmp_path / "key", tmp_path / "other"
    prepare([str(book)], out=other, valid=0.1, min_count=2, num_processes=1)
    fingerprints = [
        json.loads((folder / "meta.json").read_text())["fingerprint"][:12]
        for folder in (toy_data, other)
    ]
    settings = ["--key", key, "--workers", 2, "--seconds", 1000]
    with serving(toy_data, run, *settings) as (server, address):
        work = ["work", toy_data, "--servers", address, "--key", key]
        with (
            running(*work) as first,
            running("work", other, *work[2:]) as refused,
            running(*work[:4]) as stranger,
        ):
            said = finished(refused, 2)
            assert all(fingerprint in said for fingerprint in fingerprints)
            until(lambda: has_trained(run))
            first.send_signal(signal.SIGINT)
            finished(first, 130)
            assert stranger.poll() is None
        count = len(lines(run, "train"))
        with running(*work) as second:
            until(lambda: has_trained(run, count + 1))
            server.send_signal(signal.SIGTERM)
            finished(server, 130)
            said = finished(second)
            assert f"Waiting for {address}" in said and "Joined; this worker's part" in said
            assert "The run has ended: it was interrupted." in said
    assert Checkpoints(run).newest == lines(run, "end")[0]["step"]


def test_beyond_loopback_a_key_is_needed(
    toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sentence, command in {
        "so the server needs --key FILE": ["serve", "--out", tmp_path / "run", "--listen", "*:0"],
        "name it with --key FILE": ["work", "--servers", "192.0.2.1:5555"],
        "no address of the form HOST:PORT": ["work", "--servers", "here"],
        "must be I/N with I from 0": [
            *["serve", "--out", tmp_path / "run", "--listen", "127.0.0.1:0", "--shard", "2/2"]
        ],
        "--servers must name 2 addresses": [
            *["serve", "--out", tmp_path / "run", "--listen", "127.0.0.1:0", "--shard", "0/2"]
        ],
    }.items():
        verb, *rest = command
        assert main([verb, str(toy_data), *map(str, rest)]) == 2
        assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()
