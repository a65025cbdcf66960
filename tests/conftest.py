"""What all tests share: hypothesis settings, the command line as a process, a text to train on,
small settings, and workers that are threads."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from thinwire.config import RunConfig

# No test depends on timing, and CI draws the same examples every time.
settings.register_profile("thinwire", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("thinwire")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what runs in the background; processes that tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as under nohup

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Work = Callable[[Any], Any]


@pytest.fixture
def thinwire(tmp_path: Path) -> Run:
    """Run `thinwire ARG...` as a process of its own in `tmp_path`; standard input is `stdin`."""

    def run(*args: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "thinwire", *map(str, args)]
        return subprocess.run(
            command, cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=110
        )

    return run


def sentences(num_lines: int, seed: int = 0) -> list[str]:
    """Lines of a toy English: regular enough to learn from, irregular enough to be a text."""
    rng = random.Random(seed)
    nouns = [f"{a}{b}" for a in ("cat", "dog", "bird", "fish", "tree") for b in ("", "s", "let")]
    verbs = ["sees", "hears", "follows", "finds", "likes"]
    lines = []
    for _ in range(num_lines):
        subject, object_ = rng.choice(nouns), rng.choice(nouns)
        line = f"The {subject} {rng.choice(verbs)} the {object_}"
        if rng.random() < 0.3:
            line += f" {rng.randrange(100)} times"
        lines.append(line + rng.choice([".", ".", "!", ", they say."]))
    return lines


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 15,635 training tokens and 122 words; to be read only."""
    from thinwire.data.prepare import prepare

    folder = tmp_path_factory.mktemp("toy")
    text = folder / "book.txt"
    text.write_text("\n".join(sentences(2000)) + "\n", encoding="utf-8")
    prepare([str(text)], out=folder / "data", valid=0.05, min_count=3, num_processes=1)
    return folder / "data"


@pytest.fixture(scope="session")
def toy_run(toy_data: Path) -> Path:
    """A run folder: a tiny model that has seen 6,000 tokens of `toy_data`; to be read only."""
    from thinwire.config import RunConfig
    from thinwire.training.loop import train

    out = toy_data.parent / "run"
    settings = {
        "run": {"tokens": 6000, "threads": 1},
        "model": {"width": 16},
        "loss": {"samples": 50},
        "data": {"batch": 4},
    }
    train(toy_data, out, RunConfig.from_dict(settings))
    return out


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A small text file, `book.txt` in `tmp_path`."""
    path = tmp_path / "book.txt"
    path.write_text("\n".join(sentences(2000)) + "\n", encoding="utf-8")
    return path


# Four streams of seven tokens: 28 tokens a step of one worker, which takes milliseconds.
TINY: dict[str, dict[str, Any]] = {
    "run": {"threads": 1},
    "model": {"width": 16, "heads": 2},
    "loss": {"samples": 20},
    "data": {"batch": 4, "length": 7},
    "optim": {"lr": 0.002, "row_lr": 0.1, "schedule": "constant", "warmup_steps": 0},
    "metrics": {"every_steps": 1},
}


@pytest.fixture
def tiny() -> Callable[..., RunConfig]:
    """`tiny(run={"tokens": 560}, ...)`: settings, those given laid over small ones."""
    from thinwire.config import RunConfig

    def make(**sections: dict[str, Any]) -> RunConfig:
        merged = {name: TINY.get(name, {}) | sections.get(name, {}) for name in TINY | sections}
        return RunConfig.from_dict(merged)

    return make


def run_workers(
    size: int, work: Work, transport: str, timeout_seconds: float
) -> tuple[list[Any], list[int]]:
    """What each worker returned or raised, and those that raised, the first to do so first."""
    import torch
    from torch.distributed import HashStore

    from thinwire.transport.c10d import C10d
    from thinwire.transport.in_process import in_process_group

    members, store = in_process_group(size, timeout_seconds), HashStore()
    found: list[Any] = [None] * size
    raised: list[int] = []

    def join(rank: int) -> Any:
        if transport == "in process":
            return members[rank]
        return C10d(store, rank, size, timeout_seconds, torch.device("cpu"), loopback=True)

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        member = None
        try:
            member = join(rank)
            found[rank] = work(member)
        except BaseException as error:
            found[rank] = error
            raised.append(rank)
            if isinstance(member, C10d):
                member.post_failure(str(error))
        finally:
            if member is not None:
                member.close()

    threads = [Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a worker hangs"
    return found, raised


@pytest.fixture
def outcomes() -> Callable[..., list[Any]]:
    """`outcomes(2, work)`: what `work(member)` returned or raised in each of two workers, which
    are threads; `transport` is "in process" or "gloo"."""

    def run(
        size: int, work: Work, transport: str = "in process", timeout_seconds: float = 20.0
    ) -> list[Any]:
        return run_workers(size, work, transport, timeout_seconds)[0]

    return run


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """The same where nothing may be raised."""

    def run(
        size: int, work: Work, transport: str = "in process", timeout_seconds: float = 20.0
    ) -> list[Any]:
        found, raised = run_workers(size, work, transport, timeout_seconds)
        if raised:
            raise found[raised[0]]
        return found

    return run
