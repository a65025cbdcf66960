"""Training runs on the devices of a cluster: alone, together as under torchrun, with a server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab.cluster import Cluster

PORT = 29500

Processes = list[subprocess.Popen[bytes]]


def thinwire(*arguments: object) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "thinwire", *map(str, arguments)]


def start_alone(
    cluster: Cluster, num_workers: int, data: Path, folder: Path, flags: Sequence[str]
) -> Processes:
    """Runs of one worker each, which know nothing of each other: run0, run1, ..."""
    return [
        cluster.start(
            i,
            thinwire("train", data, "--out", folder / f"run{i}", *flags, "--seed", i + 1),
            log=folder / f"{i}.log",
        )
        for i in range(num_workers)
    ]


def start_together(
    cluster: Cluster, num_workers: int, data: Path, folder: Path, flags: Sequence[str]
) -> Processes:
    """One run of workers that hold the model each, as torchrun starts them on several machines."""
    command = thinwire("train", data, "--out", folder / "run", *flags)
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
        processes.append(cluster.start(rank, command, environment, folder / f"{rank}.log"))
    return processes


def start_async(
    cluster: Cluster, num_workers: int, data: Path, folder: Path, flags: Sequence[str]
) -> Processes:
    """A server on the last device, which comes first in the list, and workers on the others."""
    key, address = folder / "key", f"{cluster.address(num_workers)}:{PORT}"
    options = ["--listen", address, "--key", key, "--workers", num_workers, *flags]
    serve = thinwire("serve", data, "--out", folder / "run", *options)
    server = cluster.start(num_workers, serve, log=folder / "server.log")
    while not key.exists() and server.poll() is None:
        time.sleep(0.05)
    work = thinwire("work", data, "--servers", address, "--key", key)
    workers = [cluster.start(i, work, log=folder / f"{i}.log") for i in range(num_workers)]
    return [server, *workers]


def wait(processes: Processes, folder: Path, timeout_seconds: float) -> list[float]:
    """Until all have ended well; the CPU seconds that each has used."""
    deadline = time.monotonic() + timeout_seconds
    cpu_seconds = []
    for process in processes:
        pid = 0
        while not pid:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if time.monotonic() > deadline:
                sys.exit(f"{process.args} did not end{_logs(folder)}")
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{process.args} ended with status {process.returncode}{_logs(folder)}")
        cpu_seconds.append(usage.ru_utime + usage.ru_stime)
    return cpu_seconds


def _logs(folder: Path) -> str:
    logs = sorted(folder.glob("*.log"))
    return "".join(f"\n--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)
