"""N devices on one machine: each a network namespace with a link of its own to a common bridge.

A device's traffic passes `tc tbf` both ways, so its link has the given rate up and down; with a
`share` its processes get that part of one core, by the cpu controller. All is taken down when the
block ends, also by SIGTERM. Processes end with the one that started them, however that ends; what
else a crash has left is taken down before a new cluster is set up. Needs root.

    with Cluster(2, rate="100mbit") as cluster:
        process = cluster.start(0, ["python", "-m", "thinwire", ...])
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

PREFIX = "tw"
BRIDGE = f"{PREFIX}-bridge"
NETWORK = "10.213.7"
CGROUP = Path("/sys/fs/cgroup")
PERIOD_MICROSECONDS = 20_000
PROBE = [sys.executable, "-m", "benchmarks.lab.probe"]
PROBE_BYTES = 1 << 20
# How long a process that was killed may take to leave its group.
LEAVING_SECONDS = 5.0


def cannot() -> str | None:
    """Why no cluster can be emulated here; None: it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "an emulated cluster needs Linux and root, for network namespaces"
    tools = {"ip": "iproute2", "tc": "iproute2", "setpriv": "util-linux"}
    missing = [f"{t} ({package})" for t, package in tools.items() if shutil.which(t) is None]
    return f"an emulated cluster needs {' and '.join(missing)}" if missing else None


class Cluster:
    """Devices 0 to N - 1.

    Args:
        num_devices: how many.
        rate: of each link, both ways, as `tc` writes it: "20mbit", "1gbit"; None: as fast as it is.
        share: of one core for each device; None: no limit.
        cores: pin device i to cores[i % len]; None: not pinned.
    """

    def __init__(
        self,
        num_devices: int,
        rate: str | None = None,
        share: float | None = None,
        cores: Sequence[int] | None = None,
    ) -> None:
        self.num_devices, self.rate, self.share, self.cores = num_devices, rate, share, cores
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        if reason := cannot():
            sys.exit(reason)
        take_down()
        self._handler = signal.signal(signal.SIGTERM, _exit)
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "link", "set", BRIDGE, "up")
        for device in range(self.num_devices):
            self._add(device)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        take_down()
        signal.signal(signal.SIGTERM, self._handler)

    @staticmethod
    def address(device: int) -> str:
        """Its IP address."""
        return f"{NETWORK}.{device + 1}"

    @staticmethod
    def interface(device: int) -> str:
        """Its network interface, inside its namespace."""
        return f"{PREFIX}{device}-in"

    def start(
        self,
        device: int,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        *,
        limited: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a device; its output goes to `log`.

        One that is not `limited` is a part of the network: it gets more than the device's share.
        """
        inside = ["setpriv", "--pdeathsig", "KILL"]
        if self.share is not None and limited:
            # The shell enters the device's group before it becomes the command: within a
            # namespace /sys is another one, without groups.
            file = _group(device) / "cgroup.procs"
            inside += ["sh", "-c", f'echo $$ > {file} && exec "$@"', "sh"]
        inside += ["ip", "netns", "exec", f"{PREFIX}{device}"]
        if self.cores is not None:
            inside += ["taskset", "-c", str(self.cores[device % len(self.cores)])]
        output = subprocess.DEVNULL if log is None else log.open("ab")
        process = subprocess.Popen(
            [*inside, *command],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        self._processes.append(process)
        return process

    def cut(self, device: int, *, cut: bool) -> None:
        """Pull the cable of a device out, or put it back in."""
        _run("ip", "link", "set", f"{PREFIX}{device}-out", "down" if cut else "up")

    def set_rate(self, device: int, rate: str) -> None:
        """Give a device's link another rate, both ways; the cluster must have one."""
        name = f"{PREFIX}{device}"
        shape = ("root", "tbf", "rate", rate, "burst", "256kb", "latency", "100ms")
        _run("tc", "qdisc", "replace", "dev", f"{name}-out", *shape)
        within = ("ip", "netns", "exec", name)
        _run(*within, "tc", "qdisc", "replace", "dev", self.interface(device), *shape)

    def measured_rate(self) -> float:
        """Bit/s from device 0 to device 1, by sending for about a second over TCP."""
        num_bytes = PROBE_BYTES * (128 if self.rate is None else max(2, _mbit(self.rate) // 8))
        receiver = self.start(1, [*PROBE, "receive", self.address(1)])
        inside = ["ip", "netns", "exec", f"{PREFIX}0"]
        sender = subprocess.run(
            [*inside, *PROBE, "send", self.address(1), str(num_bytes)],
            capture_output=True,
            text=True,
            check=True,
        )
        receiver.wait()
        return float(sender.stdout)

    def _add(self, device: int) -> None:
        name, outside, inside = f"{PREFIX}{device}", f"{PREFIX}{device}-out", self.interface(device)
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
        _run("ip", "link", "set", inside, "netns", name)
        _run("ip", "link", "set", outside, "master", BRIDGE, "up")
        within = ("ip", "netns", "exec", name)
        _run(*within, "ip", "addr", "add", f"{self.address(device)}/24", "dev", inside)
        _run(*within, "ip", "link", "set", inside, "up")
        _run(*within, "ip", "link", "set", "lo", "up")
        if self.rate is not None:
            shape = ("root", "tbf", "rate", self.rate, "burst", "256kb", "latency", "100ms")
            _run("tc", "qdisc", "add", "dev", outside, *shape)
            _run(*within, "tc", "qdisc", "add", "dev", inside, *shape)
        if self.share is not None:
            _make_group(device, self.share)


def take_down() -> None:
    """Remove every device there is, also those of a run that crashed."""
    if cannot():
        return
    namespaces = _devices(_run("ip", "netns", "list", check=False).splitlines())
    for device in namespaces:
        for pid in _run("ip", "netns", "pids", f"{PREFIX}{device}", check=False).split():
            _run("kill", "-9", pid, check=False)
    links = _run("ip", "-oneline", "link", "show", "type", "veth", check=False)
    for outside in re.findall(rf"{PREFIX}\d+-out", links):
        # By name, for those of a namespace stay for a while after it has gone.
        _run("ip", "link", "del", outside, check=False)
    for device in namespaces:
        _run("ip", "netns", "del", f"{PREFIX}{device}", check=False)
    for device in _devices(path.name for path in _group(0).parent.glob(f"{PREFIX}*")):
        _remove_group(device)
    _run("ip", "link", "del", BRIDGE, check=False)


def _devices(names: Iterable[str]) -> list[int]:
    """The devices among these namespaces or groups."""
    return [int(m[1]) for name in names if (m := re.match(rf"{PREFIX}(\d+)\b", name))]


def _version_2() -> bool:
    return (CGROUP / "cgroup.controllers").exists()


def _group(device: int) -> Path:
    return (CGROUP if _version_2() else CGROUP / "cpu") / f"{PREFIX}{device}"


def _make_group(device: int, share: float) -> None:
    folder, quota = _group(device), int(share * PERIOD_MICROSECONDS)
    folder.mkdir(exist_ok=True)
    if _version_2():
        (folder / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
    else:
        (folder / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
        (folder / "cpu.cfs_quota_us").write_text(str(quota))


def _remove_group(device: int) -> None:
    folder = _group(device)
    deadline = time.monotonic() + LEAVING_SECONDS
    while folder.exists():
        for pid in (folder / "cgroup.procs").read_text().split():
            _run("kill", "-9", pid, check=False)
        try:
            folder.rmdir()
        except OSError as error:  # a process that has just been killed is still leaving
            if time.monotonic() > deadline:
                print(f"{folder} stays for now: {error.strerror}", file=sys.stderr)
                return
            time.sleep(0.02)


def _mbit(rate: str) -> int:
    return int(rate.removesuffix("mbit")) if rate.endswith("mbit") else 1000 * int(rate[:-4])


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
