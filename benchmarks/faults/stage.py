"""Where a run is played: machines, disk, clocks, and what a scheduler does about its processes.

Devices are those of an emulated cluster (`lab/cluster.py`); the run folder is on a small tmpfs; the
clock of every device can be set (`clock.c`), where there is a C compiler. A process that ends
before the first server has ended with status 0 is started again, as a scheduler does; the first
server with `--resume`. Without root only runs that stay on one machine can be played, with
processes as their only victims.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from benchmarks.faults.schedule import Fault
from benchmarks.lab.cluster import Cluster, cannot
from benchmarks.lab.runs import PORT, thinwire

DISK_MB = 64
RATE, SLOW_RATE = "1gbit", "20mbit"
AGAIN_SECONDS = 0.5
# One that has ended with status 0: the first server may be about to.
WELL_SECONDS = 5.0
LEAVING_SECONDS = 120.0
CLOCK = Path(__file__).with_name("clock.c")
Process = subprocess.Popen[bytes]


class Member:
    """A process that the scheduler looks after: its command, and that of starting it again."""

    def __init__(
        self, name: str, device: int, command: Sequence[str], again: Sequence[str] | None = None
    ) -> None:
        self.name, self.device = name, device
        self.command, self.again = command, again or command
        self.process: Process
        self.ended_at = 0.0
        self.statuses: list[int] = []


class Stage:
    """One run.

    Args:
        exchange: one of `schedule.ROLES`.
        data: the data folder.
        folder: an empty one, for all that belongs to the run.
        settings: flags of the run.
    """

    def __init__(self, exchange: str, data: Path, folder: Path, settings: Sequence[str]) -> None:
        self.exchange, self.data, self.folder = exchange, data, folder
        self.settings = settings
        self.run = folder / "disk" / "run"
        self.torchrun = exchange in ("sync", "periodic")
        self._undo: list[tuple[float, Callable[[], object]]] = []

    def __enter__(self) -> Stage:
        self._stack = ExitStack()
        self.run.parent.mkdir()
        self.cluster: Cluster | None = None
        if not cannot():
            self.cluster = self._stack.enter_context(Cluster(4, rate=RATE))
            disk = str(self.run.parent)
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "soak", disk], check=True
            )
            self._stack.callback(subprocess.run, ["umount", "-l", disk])
        self.shim = None
        if shutil.which("cc"):
            self.shim = self.folder / "clock.so"
            compiled = ["cc", "-O2", "-shared", "-fPIC", "-o", str(self.shim), str(CLOCK)]
            subprocess.run(compiled, check=True)
        self.members = self._torchrun() if self.torchrun else self._async()
        for member in self.members:
            self._start(member, member.command)
            self._wait_for_key()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self.members:
            for pid in (*children(member.process.pid), member.process.pid):
                strike(pid, signal.SIGKILL)
            member.process.wait()
        self._stack.close()

    # Starting

    def _torchrun(self) -> list[Member]:
        train = thinwire("train", self.data, "--out", self.run, *self.settings)
        agents = []
        for device in range(2):
            options = {
                "nnodes": 2,
                "nproc-per-node": 1,
                "max-restarts": 1000,
                "monitor-interval": 0.2,
                "rdzv-backend": "c10d",
                "rdzv-endpoint": f"{Cluster.address(0)}:{PORT}",
                "rdzv-id": "soak",
                "rdzv-conf": f"is_host={int(device == 0)}",
                "local-addr": Cluster.address(device),
            }
            flags = [f"--{name}={value}" for name, value in options.items()]
            # Its workers' clocks jump. Its own do not: it would give up the other machine.
            clock = [f"{name}={value}" for name, value in self._moved_clock(device).items()]
            command = [sys.executable, "-m", "torch.distributed.run", *flags, "--no-python"]
            agents.append(Member(f"agent {device}", device, [*command, "env", *clock, *train]))
        return agents

    def _async(self) -> list[Member]:
        if self.exchange == "supervised":
            flags = ["--workers", "3", "--exchange.servers", "2"]
            command = thinwire("train", self.data, "--out", self.run, *flags, *self.settings)
            return [Member("lead", 0, command, [*command, "--resume"])]
        num = 2 if self.exchange == "async2" else 1
        servers = ",".join(f"{Cluster.address(2 + i)}:{PORT}" for i in range(num))
        key = self.folder / "key"
        members = []
        for i in range(num):
            options = ["--listen", servers.split(",")[i], "--key", key, "--workers", 2]
            options += ["--shard", f"{i}/{num}"]
            options += ["--servers", servers] if num > 1 and i == 0 else []
            serve = thinwire("serve", self.data, "--out", self.run, *options, *self.settings)
            again = [*serve, "--resume"] if i == 0 else serve
            members.append(Member("follower" if i else "lead", 2 + i, serve, again))
        work = thinwire("work", self.data, "--servers", servers, "--key", key)
        work += ["--threads", "1"]
        return [*members, *(Member(f"worker {i}", i, work) for i in range(2))]

    def _start(self, member: Member, command: Sequence[str]) -> None:
        environment = {"GLOO_SOCKET_IFNAME": Cluster.interface(member.device)}
        log = self._log(member)
        if self.cluster is None:
            with log.open("ab") as output:
                member.process = subprocess.Popen(command, stdout=output, stderr=output)
            return
        if not self.torchrun:
            environment |= self._moved_clock(member.device)
        member.process = self.cluster.start(member.device, command, environment, log)

    def _wait_for_key(self) -> None:
        """The first server makes the key that all others need."""
        key = self.folder / "key"
        while not self.torchrun and self.exchange != "supervised" and not key.exists():
            time.sleep(0.05)

    def _log(self, member: Member) -> Path:
        return self.folder / f"{member.name.replace(' ', '-')}.log"

    def _moved_clock(self, device: int) -> dict[str, str]:
        """The environment of processes whose clock can be set; empty where none can be."""
        if self.shim is None:
            return {}
        clock = self._clock(device)
        if not clock.exists():
            set_clock(clock, 0)
        return {"LD_PRELOAD": str(self.shim), "SOAK_CLOCK": str(clock)}

    def _clock(self, device: int) -> Path:
        return self.folder / f"clock-{device}"

    # What a scheduler does

    def poll(self, *, again: bool) -> None:
        """Let faults end whose time is over and, if asked to, start again what has ended."""
        now = time.monotonic()
        for due, end in [u for u in self._undo if u[0] <= now]:
            self._undo.remove((due, end))
            end()
        for member in self.members:
            status = member.process.poll()
            if status is None or self.torchrun or self.over:
                continue
            if not again and member is not self.members[0]:
                continue
            if not member.ended_at:
                member.ended_at = now
                member.statuses.append(status)
            elif now - member.ended_at > (AGAIN_SECONDS if status else WELL_SECONDS):
                member.ended_at = 0.0
                # Nothing to resume where the first start was cut off before there was a run.
                resumes = (self.run / "config.toml").exists()
                self._start(member, member.again if resumes else member.command)

    @property
    def over(self) -> bool:
        """Whether the first server, or all that torchrun has started, has ended by itself."""
        if self.torchrun:
            return all(m.process.poll() is not None for m in self.members)
        return self.members[0].process.poll() == 0

    def calm(self) -> None:
        """End all faults that last."""
        for _, end in self._undo:
            end()
        self._undo.clear()

    def leave(self) -> list[str]:
        """After the end: wait for the others; what they did that they should not have done."""
        self.calm()
        deadline = time.monotonic() + LEAVING_SECONDS
        while time.monotonic() < deadline:
            left = [m for m in self.members if m.process.poll() is None]
            if not left:
                break
            for member in left:
                if self._comes_too_late(member):  # it would ask for a minute
                    strike(member.process.pid, signal.SIGTERM)
            time.sleep(0.1)
        wrong = [f"{m.name} did not end" for m in self.members if m.process.poll() is None]
        if self.torchrun:
            statuses = [m.process.poll() for m in self.members]
            wrong += [f"torchrun ended with {statuses}"] if any(statuses) else []
        return wrong

    def _comes_too_late(self, member: Member) -> bool:
        """Whether a worker still looks for the servers that have gone."""
        if not member.name.startswith("worker"):
            return False
        lines = self._log(member).read_text(errors="replace").split("\n")
        return lines[-2:-1] != [] and lines[-2].startswith("Waiting for")

    # Faults

    def strike(self, fault: Fault) -> bool:
        """Do it; False: there is nobody to do it to just now."""
        if fault.kind in ("kill", "stop", "term"):
            victims = self.victims(fault.role)
            if not victims:
                return False
            pid = victims[int(fault.pick * len(victims))]
            numbers = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
            strike(pid, numbers[fault.kind])
            if fault.kind == "stop":
                self._later(fault.seconds, lambda: strike(pid, signal.SIGCONT))
            return True
        cluster, device = self.cluster, self.device(fault)
        assert cluster is not None
        if fault.kind == "cut":
            cluster.cut(device, cut=True)
            self._later(fault.seconds, lambda: cluster.cut(device, cut=False))
        elif fault.kind == "slow":
            cluster.set_rate(device, SLOW_RATE)
            self._later(fault.seconds, lambda: cluster.set_rate(device, RATE))
        elif fault.kind == "clock":
            set_clock(self._clock(device), int(fault.seconds))
        else:
            self._later(fault.seconds, self._fill())
        return True

    def _fill(self) -> Callable[[], object]:
        """Leave no free byte on the run's disk; returns what makes room again."""
        ballast = self.run.parent / f"ballast-{time.monotonic_ns()}"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        return lambda: ballast.unlink(missing_ok=True)

    def _later(self, seconds: float, end: Callable[[], object]) -> None:
        self._undo.append((time.monotonic() + seconds, end))

    def device(self, fault: Fault) -> int:
        """Where a fault strikes that is a machine's."""
        if self.torchrun:
            return 0 if fault.role == "lead" else 1
        if self.exchange == "supervised":
            return 0
        return {"lead": 2, "follower": 3}.get(fault.role, int(fault.pick * 2))

    def victims(self, role: str) -> list[int]:
        """The processes of this role that run, and are neither stopped nor dead."""
        if self.torchrun:
            agent = self.members[0 if role == "lead" else 1]
            found = children(agent.process.pid)
        elif self.exchange == "supervised":
            name = {"lead": "server-0", "follower": "server-1"}.get(role, "worker")
            found = [
                pid
                for pid in children(self.members[0].process.pid)
                if any(part.rpartition("/")[2].startswith(name) for part in command_of(pid))
            ]
        else:
            found = [m.process.pid for m in self.members if m.name.split()[0] == role]
        return [pid for pid in found if state_of(pid) not in "TZ"]


def set_clock(file: Path, seconds: int) -> None:
    """Move the clock of all processes that have this file mapped; in place, for they do."""
    with file.open("r+b" if file.exists() else "wb") as opened:
        opened.write(struct.pack("=q", seconds))


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def command_of(pid: int) -> list[str]:
    """Its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def state_of(pid: int) -> str:
    """One letter; Z where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def strike(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
