"""Training runs on the devices of a cluster: alone, together as under torchrun, with a server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.lab.cluster import Cluster

PORT = 29500
RELAY = [sys.executable, "-m", "benchmarks.lab.relay"]
LOOK_SECONDS = 0.25

Processes = list[subprocess.Popen[bytes]]
Command = Callable[..., list[str]]
"""Makes a command line of the arguments of `thinwire`."""


def thinwire(*arguments: object) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "thinwire", *map(str, arguments)]


def start_alone(
    cluster: Cluster,
    num_workers: int,
    data: Path,
    folder: Path,
    flags: Sequence[str],
    first_seed: int = 1,
    command: Command = thinwire,
) -> Processes:
    """Runs of one worker each, which know nothing of each other: run0, run1, ..."""
    return [
        cluster.start(
            i,
            command("train", data, "--out", folder / f"run{i}", *flags, "--seed", first_seed + i),
            log=folder / f"{i}.log",
        )
        for i in range(num_workers)
    ]


def start_together(
    cluster: Cluster,
    num_workers: int,
    data: Path,
    folder: Path,
    flags: Sequence[str],
    command: Command = thinwire,
) -> Processes:
    """One run of workers that hold the model each, as torchrun starts them on several machines."""
    train = command("train", data, "--out", folder / "run", *flags)
    processes = []
    for rank in range(num_workers):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(num_workers),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": cluster.address(0),
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": cluster.interface(rank),
        }
        processes.append(cluster.start(rank, train, environment, folder / f"{rank}.log"))
    return processes


def start_async(
    cluster: Cluster,
    num_workers: int,
    data: Path,
    folder: Path,
    flags: Sequence[str],
    delay_ms: float = 0.0,
    command: Command = thinwire,
) -> Processes:
    """A server on the last device, which comes first in the list, and workers on the others.

    With `delay_ms`, each message takes so much longer: workers reach the server through a relay on
    their own device, which is left to run.
    """
    key, address = folder / "key", f"{cluster.address(num_workers)}:{PORT}"
    options = ["--listen", address, "--key", key, "--workers", num_workers, *flags]
    serve = command("serve", data, "--out", folder / "run", *options)
    server = cluster.start(num_workers, serve, log=folder / "server.log")
    while not key.exists() and server.poll() is None:
        time.sleep(0.05)
    if delay_ms:
        near = f"127.0.0.1:{PORT}"
        relay = [*RELAY, near, address, str(delay_ms)]
        for i in range(num_workers):
            cluster.start(i, relay, log=folder / f"relay{i}.log", limited=False)
        address = near
    work = command("work", data, "--servers", address, "--key", key)
    workers = [cluster.start(i, work, log=folder / f"{i}.log") for i in range(num_workers)]
    return [server, *workers]


class CpuWatch:
    """What part of a core each process uses while the runs in `folder` train.

    `look` is to be called now and then. What is counted lies between two lines of the runs'
    metrics; the first fifth, in which caches fill, does not count.
    """

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes, self._folder = processes, folder
        self._samples: list[tuple[float, list[float]]] = []
        self._looked, self._num_lines = 0.0, 0

    def look(self) -> None:
        """Take a sample if a run has written something since the last one."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        files = self._folder.glob("*/metrics.jsonl")
        num_lines = sum(file.read_text().count('"event": "train"') for file in files)
        if num_lines > self._num_lines and all(p.returncode is None for p in self._processes):
            self._num_lines = num_lines
            self._samples.append((now, [_cpu_seconds(p.pid) for p in self._processes]))

    def shares(self) -> list[float]:
        """Of one core, in the order of the processes."""
        # The last line may be written a while after the last step.
        steady = self._samples[len(self._samples) // 5 : -1]
        (began, before), (ended, after) = steady[0], steady[-1]
        return [(b - a) / (ended - began) for a, b in zip(before, after, strict=True)]


def wait(
    processes: Processes,
    folder: Path,
    timeout_seconds: float,
    meanwhile: Callable[[], object] = lambda: None,
    num_runs: int = 0,
) -> None:
    """Until all have ended well or, what comes sooner, all of the runs in `folder` are over.

    A device of half a core needs seconds to leave, and over a slow link may hear late of the end.
    """
    deadline = time.monotonic() + timeout_seconds
    left = processes
    while left and not (num_runs and _num_over(folder) == num_runs):
        if time.monotonic() > deadline:
            sys.exit(f"{left[0].args!r} did not end{_logs(folder)}")
        meanwhile()
        time.sleep(0.1)
        for process in left:
            if process.poll():
                sys.exit(f"{process.args!r} ended with status {process.returncode}{_logs(folder)}")
        left = [process for process in left if process.returncode is None]


def _num_over(folder: Path) -> int:
    """How many runs have written their last line, before which all is saved."""
    return sum('"event": "end"' in file.read_text() for file in folder.glob("*/metrics.jsonl"))


def _cpu_seconds(pid: int) -> float:
    """That a process has used so far, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _logs(folder: Path) -> str:
    logs = sorted(folder.glob("*.log"))
    return "".join(f"\n--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)
