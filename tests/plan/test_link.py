"""Workers measure their link, plan for the slowest, and use what the first one chooses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any

import pytest
from torch import Tensor

from thinwire.cli.app import main
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.launch import auto
from thinwire.launch.auto import with_best_exchange
from thinwire.plan import link as link_module
from thinwire.plan import plan as plan_module
from thinwire.plan.forecast import Link
from thinwire.plan.link import measure_link
from thinwire.plan.machine import Machine
from thinwire.plan.plan import KINDS, REPLICATED, Plan, make_plan
from thinwire.runs.folder import RunFolder
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective, Done, Lengths, Pending
from thinwire.transport.in_process import in_process_group

CODING = {"fp32": 1e-9, "bf16": 1e-9, "int8": 1e-9, "int4": 1e-9}
MACHINE = Machine(0.01, 0.02, 0.03, 0.004, 1e-6, 1e-4, CODING, CODING, 3e-9, 7e-9, 0.0, 1000.0)
SMALL = ("--model.width", "16", "--data.batch", "4", "--loss.samples", "50", "--threads", "1")


class Emulated(Alone):
    """One of several workers whose links have a rate and a latency, on a clock of its own."""

    def __init__(self, size: int, rate: float, latency_seconds: float, slowness: float) -> None:
        super().__init__()
        self.size, self.now = size, 0.0
        self._rate, self._latency_seconds, self._slowness = rate, latency_seconds, slowness

    def all_gather(self, message: Tensor, lengths: Lengths | None = None) -> Pending[list[Tensor]]:
        num_bytes = (self.size - 1) * len(message)
        self.now += self._latency_seconds + num_bytes / self._rate
        return Done([message] * self.size)

    def all_gather_json(self, value: Any) -> list[Any]:
        return [value, *[value * self._slowness] * (self.size - 1)]


@pytest.mark.parametrize("rate", [1e4, 2.5e6, 1.25e8, 2e9])
@pytest.mark.parametrize("slowness", [1.0, 2.0])
def test_the_slowest_workers_rate_and_latency(
    monkeypatch: pytest.MonkeyPatch, rate: float, slowness: float
) -> None:
    member = Emulated(3, rate, 1e-5, slowness)
    monkeypatch.setattr(link_module, "perf_counter", lambda: member.now)
    found = measure_link(member)
    assert found.rate == pytest.approx(rate / slowness, rel=1e-3)
    assert found.latency_seconds == pytest.approx(slowness * (1e-5 + 2 / rate), rel=1e-3)


def together(work: Callable[[Collective], Any], size: int = 2) -> list[Any]:
    """What each worker of a group of threads, which are named by rank, finds."""
    found: dict[int, Any] = {}

    def run(member: Collective) -> None:
        found[member.rank] = work(member)

    group = in_process_group(size)
    threads = [Thread(target=run, args=(member,), name=str(member.rank)) for member in group]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


def test_all_find_the_same_link() -> None:
    first, second = together(measure_link)
    assert first == second
    assert first.rate > 0 and first.latency_seconds > 0


def config_of(*, workers: int) -> RunConfig:
    return RunConfig.from_dict(
        {
            "run": {"threads": 1, "workers": workers, "tokens": 2000},
            "model": {"width": 16},
            "loss": {"samples": 50},
            "data": {"batch": 4},
            "exchange": {"kind": "auto"},
        }
    )


def test_the_slowest_machine_counts(toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(MACHINE, backward=3.0)
    machines: SimpleQueue[Machine] = SimpleQueue()
    for machine in (MACHINE, slow):
        machines.put(machine)
    monkeypatch.setattr(plan_module, "measure", lambda *_: machines.get())
    corpus, config = Corpus.open(toy_data), config_of(workers=2)
    plans = together(lambda member: make_plan(corpus, config, Link(1e8), (2,), collective=member))
    assert [plan.machine for plan in plans] == [slow, slow]
    assert plans[0].forecasts == plans[1].forecasts


def test_the_first_worker_chooses(
    toy_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the others would take; and never what needs a server."""
    asked: list[Sequence[str]] = []
    ways = {"0": ("periodic", "int4"), "1": ("sync", "fp32")}

    def best(plan: Plan, workers: int, kinds: Sequence[str]) -> Any:
        asked.append(kinds)
        kind, codec = ways[current_thread().name]
        return replace(
            plan.forecasts[0], exchange=kind, codec=codec, batch=8, local_steps=2, row_steps=6
        )

    monkeypatch.setattr(plan_module, "measure", lambda *_: MACHINE)
    monkeypatch.setattr(Plan, "best", best)
    taken = together(lambda member: with_best_exchange(toy_data, config_of(workers=2), member))
    assert [(c.exchange.kind, c.exchange.codec) for c in taken] == [("periodic", "int4")] * 2
    assert [(c.data.batch, c.exchange.row_steps) for c in taken] == [(8, 6)] * 2
    assert asked == [REPLICATED, REPLICATED]
    assert capsys.readouterr().err.splitlines() == [
        "Measuring this machine",
        "Measuring the link",
        "Counting what 2 workers would send",
        "Planned: --exchange periodic --codec int4 --data.batch 8 --exchange.local_steps 2 "
        "--exchange.fragments 1 --exchange.row_steps 6 --exchange.overlap_steps 0",
    ]


def test_one_worker_needs_no_plan(
    toy_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auto, "plan_for", None)
    assert with_best_exchange(toy_data, config_of(workers=1)).exchange.kind == "sync"
    assert with_best_exchange(toy_data, config_of(workers=1), Alone()).exchange.kind == "sync"
    assert "one worker has nobody to exchange with" in capsys.readouterr().err


def test_auto_on_one_machine(
    toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SMALL, "--tokens", "3000", "--eval.tokens", "500", "--workers", "2"]
    run = tmp_path / "run"
    assert main(["train", str(toy_data), "--out", str(run), *flags, "--exchange", "auto"]) == 0
    exchange = RunFolder.open(run).config.exchange
    assert exchange.kind in KINDS
    said = capsys.readouterr().err
    assert f"Planned: --exchange {exchange.kind} --codec {exchange.codec}" in said


# `thinwire` that measures for a moment only.
HASTY = """
import sys
from thinwire.cli.app import main
from thinwire.plan import link, plan, timing
link.LEAST_SECONDS = plan.SECONDS = 0.1
timing.LEAST_SECONDS, timing.MOST_SECONDS = 0.01, 0.02
sys.exit(main())
"""


def torchrun(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    (folder / "hasty.py").write_text(HASTY, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "hasty.py", *map(str, args)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)


def test_a_plan_under_torchrun(toy_data: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path, "plan", toy_data, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # of one of the two
    assert found["best"].keys() == {"2"}
    assert found["link_bytes_per_second"] not in (0, 1.25e8)


def test_a_plan_of_the_only_worker_of_torchrun(
    toy_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It plans as without torchrun."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "nowhere")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["plan", str(toy_data), *SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"].keys() == {"2", "4", "8"}
    assert found["link_bytes_per_second"] == 1.25e8


def test_auto_under_torchrun(toy_data: Path, tmp_path: Path) -> None:
    flags = [*SMALL, "--tokens", "3000", "--eval.tokens", "500", "--exchange", "auto"]
    done = torchrun(tmp_path, "train", toy_data, "--out", "run", *flags)
    assert done.returncode == 0, done.stderr
    exchange = RunFolder.open(tmp_path / "run").config.exchange
    assert exchange.kind in REPLICATED
    assert done.stderr.count("Planned:") == 1
    assert f"Planned: --exchange {exchange.kind} --codec {exchange.codec}" in done.stderr
