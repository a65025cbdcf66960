"""Does a run survive strangers? Spoilt messages and floods against a server that trains.

A server with a key and two workers train on this machine. Meanwhile this process

1. speaks without a key, with a wrong key, and in raw bytes that are no ZeroMQ at all;
2. holds the key, joins as a worker, records what it says, leaves, and sends that spoilt: bits
   flipped, cut, spliced, lengths and numbers that lie, ids out of range, other kinds, earlier
   messages again, in any order;
3. joins once more, holds a place in the run, and sends the same under its living incarnation, with
   numbers that are due and sound messages in between, so that they reach the parameters; whenever
   the server knows it no more, and now and then, it joins anew;
4. opens `--connections` idle connections, and leaves them open for a while.

Of `--messages`, a tenth each goes without and with a wrong key, half in 2 and all the rest in 3,
unless the time is over.

Demanded: no traceback, the server's memory stays within `MEMORY_BYTES` of what it was, the workers
that are there make steps in each of the phases, every record and every parameter is finite, and all
three processes end with status 0.

    python -m benchmarks.faults.strangers [--messages 10000] [--seconds 600] [--seed 1]

All that is sent follows from the seed; when it arrives does not. The last line is JSON. Exit status
1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from benchmarks.faults.spoil import spoilt
from thinwire import __version__
from thinwire.data.corpus import Corpus
from thinwire.data.prepare import prepare
from thinwire.errors import UserError
from thinwire.parameter_server.connections import Servers, Stopped
from thinwire.parameter_server.protocol import Kind, incarnation_of, read_message, small_message
from thinwire.parameter_server.worker import work
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.metrics import read_metrics
from thinwire.transport.keys import Key, read_key
from thinwire.transport.messages import Connection
from thinwire.transport.zeromq import ZeroMQConnection
from thinwire.wire.frames import Frame, pack

MEMORY_BYTES = 300 << 20
RECORDED = 60
FEWEST = 50  # messages of a phase, however late it is
REJOIN_AFTER = 300  # messages of one incarnation: its numbers may have run far ahead
PHASES = {"without": 0.2, "departed": 0.3, "living": 0.5}  # shares of the time for messages
LIES = (-1.0, 0.0, 1.0, 2.0, 0.5, 2.0**31, 2.0**53, 2.0**63, 1e300, math.inf, -math.inf, math.nan)


class Recording(Connection):
    """Passes messages on and keeps those that were sent; ends the worker after a while."""

    def __init__(self, inner: Connection) -> None:
        super().__init__(inner.server)
        self.inner, self.meter, self.sent = inner, inner.meter, list[Tensor]()

    def send(self, message: Tensor) -> None:
        """See `Connection`."""
        self.sent.append(message.clone())
        self.inner.send(message)
        if len(self.sent) >= RECORDED:
            raise KeyboardInterrupt

    def receive(self, timeout_seconds: float) -> Tensor | None:
        """See `Connection`."""
        return self.inner.receive(timeout_seconds)

    def close(self) -> None:
        """See `Connection`."""
        self.inner.close()


def spoilt_message(recorded: list[Tensor], rng: random.Random) -> bytes:
    """One of the messages, as no worker sends it; or as it was, again."""
    data = bytes(rng.choice(recorded).numpy())
    other = bytes(rng.choice(recorded).numpy())
    way = rng.random()
    if way < 0.1:
        return data
    if way < 0.5:
        return spoilt(data, rng, other)
    frame = read_message(torch.frombuffer(bytearray(data), dtype=torch.uint8))[1]
    kind, numbers, parts = frame.kind, list(frame.numbers), list(frame.parts)
    if way < 0.6:
        kind = rng.choice([*Kind, 0, 6, 99, -1, 2**31 - 1])
    elif way < 0.8 and numbers:
        numbers[rng.randrange(len(numbers))] = rng.choice(LIES)
    elif parts:
        at = rng.randrange(len(parts))
        changed = spoilt(bytes(parts[at].numpy()), rng, other)
        parts[at] = torch.frombuffer(bytearray(changed or b"x"), dtype=torch.uint8)
    return bytes(pack(Frame(kind, tuple(numbers), tuple(parts))).numpy())


def record(data: Path, address: str, key: Key) -> list[Tensor]:
    """What a worker says from HELLO on."""
    connection = Recording(ZeroMQConnection(address, key))
    with suppress(KeyboardInterrupt, UserError):
        work(data, [connection], name="worker stranger", threads=1)
    connection.close()
    return connection.sent


def send_all(address: str, key: Key | None, messages: list[bytes], until: float) -> int:
    """Send them over a few connections; how many were sent before the time was over."""
    connections = [ZeroMQConnection(address, key) for _ in range(4)]
    sent = 0
    for number, message in enumerate(messages):
        if time.monotonic() > until and number >= FEWEST:
            break
        connection = connections[number % len(connections)]
        connection.send(torch.frombuffer(bytearray(message or b"x"), dtype=torch.uint8))
        while connection.receive(0.0) is not None:
            pass
        sent += 1
        if number % 50 == 0:
            time.sleep(0.01)
    closing = [Thread(target=connection.close) for connection in connections]
    for thread in closing:  # each waits for a while for what could not be sent
        thread.start()
    for thread in closing:
        thread.join()
    return sent


class Living:
    """A worker that has a place in the run and sends what it likes."""

    def __init__(self, address: str, key: Key, corpus: Corpus, recorded: list[Tensor]) -> None:
        self.connection = ZeroMQConnection(address, key)
        self.servers = Servers(
            [self.connection],
            data=corpus.meta.fingerprint,
            version=__version__,
            name="worker living",
            timeout_seconds=60.0,
        )
        kinds = (Kind.PULL, Kind.PUSH)
        self.recorded = [m for m in recorded if read_message(m)[0] in kinds]
        self.answers = Counter[str]()
        self.join()

    def join(self) -> None:
        """Join, or join anew."""
        self.servers.join()
        self.answers["WELCOME"] += 1
        self.number, self.pull, self.age = 0, 0, 0

    def send(self, rng: random.Random) -> None:
        """One message that is spoilt or, of three, sound."""
        self.age += 1
        if self.age > REJOIN_AFTER:
            self.join()
        due = [
            self.due(rng.choice(self.recorded)),
            small_message(Kind.ALIVE, self.servers.incarnation),
        ]
        due = [*due[:1] * 9, *due[1:]]
        message = bytes(rng.choice(due).numpy())
        if rng.random() < 2 / 3:
            message = spoilt_message(due, rng)
        self.connection.send(torch.frombuffer(bytearray(message or b"x"), dtype=torch.uint8))
        while (received := self.connection.receive(0.0)) is not None:
            kind, frame = read_message(received)
            self.answers[kind.name] += 1
            if kind is Kind.UNKNOWN and incarnation_of(frame) == self.servers.incarnation:
                return self.join()

    def due(self, message: Tensor) -> Tensor:
        """A recorded message as this incarnation would send it now."""
        frame = read_message(message)[1]
        self.number += 1
        if frame.kind == Kind.PULL:
            self.pull = self.number
            numbers = (self.servers.incarnation, self.number, 0, *frame.numbers[3:])
        else:
            numbers = (self.servers.incarnation, self.number, self.pull, *frame.numbers[3:])
        return pack(Frame(frame.kind, numbers, frame.parts))


def send_raw(address: str, rng: random.Random, count: int) -> None:
    """Bytes that are no ZeroMQ, or only begin like it."""
    host, _, port = address.rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(48)
    for _ in range(count):
        with suppress(OSError), socket.create_connection((host, int(port)), 5) as stream:
            stream.sendall(
                rng.choice([rng.randbytes(100), greeting, greeting + rng.randbytes(200)])
            )


def memory_bytes(process: subprocess.Popen[Any]) -> int:
    """Resident memory at present."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    sizes = [1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS")]
    return sizes[0] if sizes else 0  # it has just ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of all, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, rng = time.monotonic(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="strangers-") as scratch:
        result = attack(Path(scratch), arguments, rng)
    result |= {"seed": arguments.seed, "seconds": round(time.monotonic() - began)}
    for fault in result["failed"]:
        print(f"FAILED: seed {arguments.seed}: {fault}")
    print(json.dumps(result), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return bool(result["failed"])


def attack(folder: Path, arguments: argparse.Namespace, rng: random.Random) -> dict[str, Any]:
    """Start the run, attack it, end it, and say how it went."""
    text, data, run, key_file = (folder / n for n in ("text.txt", "data", "run", "key"))
    words = ["the", "cat", "sees", "a", "dog", "and", "hears", "birds", "in", "trees", "."]
    lines = (" ".join(rng.choices(words, k=9)) for _ in range(3000))
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare([str(text)], out=data, valid=0.05, num_processes=1)
    small = [
        "--model.width",
        "16",
        "--loss.samples",
        "8",
        "--data.batch",
        "4",
        "--data.length",
        "8",
    ]
    small += ["--threads", "1", "--workers", "2", "--metrics.every_seconds", "1"]
    small += ["--seconds", str(0.8 * arguments.seconds)]
    small += ["--eval.every_seconds", "5", "--checkpoint.every_seconds", "5"]
    logs = [(folder / name).open("w+b") for name in ("serve.log", "work-0.log", "work-1.log")]

    def start(number: int, *tokens: str) -> subprocess.Popen[Any]:
        command = [sys.executable, "-m", "thinwire", *tokens]
        return subprocess.Popen(command, stderr=logs[number], stdin=subprocess.DEVNULL)

    listen = ["--listen", "127.0.0.1:0", "--key", str(key_file)]
    processes = [start(0, "serve", str(data), "--out", str(run), *listen, *small)]
    try:
        address = _address(folder / "serve.log", processes[0])
        for number in (1, 2):
            flags = ["--servers", address, "--key", str(key_file)]
            processes.append(start(number, "work", str(data), *flags))
        return _phases(arguments, rng, address, read_key(key_file), data, run, processes, logs)
    finally:
        for process in processes:
            process.kill()
        for log in logs:
            log.close()


def _phases(
    arguments: argparse.Namespace,
    rng: random.Random,
    address: str,
    key: Key,
    data: Path,
    run: Path,
    processes: list[subprocess.Popen[Any]],
    logs: list[Any],
) -> dict[str, Any]:
    failed: list[str] = []
    recorded = record(data, address, key)
    before = peak = memory_bytes(processes[0])
    counts = {str(kind.name): 0 for kind in Kind}
    for message in recorded:
        counts[read_message(message)[0].name] += 1
    total: dict[str, Any] = {"without": 0, "departed": 0, "living": 0}
    began = time.monotonic()
    seconds: float = 0.4 * arguments.seconds

    def until(phase: str) -> float:
        """When it is over: later phases keep their share."""
        names = list(PHASES)
        shares = sum(PHASES[name] for name in names[: names.index(phase) + 1])
        return began + seconds * shares

    def watched(name: str, action: Any) -> None:
        """Do it while the run goes on: it must have made steps meanwhile, or soon after."""
        nonlocal peak
        tokens = _tokens(run)
        thread = Thread(target=action, daemon=True)
        thread.start()
        deadline: float | None = None  # from when on the action is over
        while thread.is_alive() or (
            _tokens(run) <= tokens and (deadline is None or time.monotonic() < deadline)
        ):
            if (status := processes[0].poll()) is not None:
                if status == 0:  # this machine is too slow for all that was to be done
                    total.setdefault("cut_short", name)
                else:
                    failed.append(f"{name}: the server has ended with {status}")
                return
            peak = max(peak, memory_bytes(processes[0]))
            time.sleep(0.1)
            deadline = None if thread.is_alive() else deadline or time.monotonic() + 60.0
        if _tokens(run) <= tokens:
            failed.append(f"{name}: the run stands still at {tokens} tokens")

    spoilt_ones = [spoilt_message(recorded, rng) for _ in range(arguments.messages)]
    few = spoilt_ones[: len(spoilt_ones) // 10]

    def without() -> None:
        total["without"] += send_all(address, None, few, until("without"))
        total["without"] += send_all(address, Key.new(), few, until("without"))
        send_raw(address, rng, 200)

    def departed() -> None:
        total["departed"] += send_all(
            address, key, spoilt_ones[: len(spoilt_ones) // 2], until("departed")
        )

    def living() -> None:
        worker = Living(address, key, Corpus.open(data), recorded)
        try:
            most = arguments.messages - total["without"] - total["departed"]
            while total["living"] < most:
                if time.monotonic() > until("living") and total["living"] >= FEWEST:
                    break
                worker.send(rng)
                total["living"] += 1
                if total["living"] % 50 == 0:
                    time.sleep(0.01)
            worker.servers.goodbye()
        except UserError as error:
            if processes[0].poll() != 0:
                failed.append(f"the living stranger: {error}")
        except Stopped:
            total.setdefault("cut_short", "living")
        finally:
            total["answers"] = dict(worker.answers)
            worker.connection.close()

    def flood() -> None:
        host, _, port = address.rpartition(":")
        streams = []
        with suppress(OSError):
            for _ in range(arguments.connections):
                streams.append(socket.create_connection((host, int(port)), 5))
        total["connections"] = len(streams)
        time.sleep(min(8.0, 0.1 * arguments.seconds))  # 8: an evaluation and a save
        for stream in streams:
            stream.close()

    watched("no key, a wrong key, raw bytes", without)
    watched("the key, and spoilt messages", departed)
    watched("a place in the run, and spoilt messages", living)
    watched("a flood of connections", flood)
    if not total.get("answers", {}).get("ROWS") and "cut_short" not in total:
        failed.append("no message of the living stranger has reached the parameters")
    statuses = []
    for process in processes:
        try:
            statuses.append(process.wait(60 + arguments.seconds))
        except subprocess.TimeoutExpired:
            statuses.append(-9)
    if statuses != [0, 0, 0]:
        failed.append(f"exit statuses {statuses}")
    for log in logs:
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
        if "Traceback" in said:
            failed.append(said[said.index("Traceback") :][-1500:])
        if "could not be saved" in said:
            failed.append(f"a save failed: {said[-300:]}")
    failed += _not_finite(run)
    if peak - before > MEMORY_BYTES:
        failed.append(f"memory grew from {before:,} to {peak:,} bytes")
    return {**total, "failed": failed, "recorded": {k: n for k, n in counts.items() if n}} | {
        "memory_before": before,
        "memory_peak": peak,
        "tokens": _tokens(run),
    }


def _address(log: Path, server: subprocess.Popen[Any]) -> str:
    while server.poll() is None:
        said = log.read_text(encoding="utf-8")
        if "Leader at " in said and said.endswith("\n"):
            return said.rpartition("Leader at ")[2].split()[0]
        time.sleep(0.1)
    sys.exit(f"the server has not started: {log.read_text(encoding='utf-8')}")


def _tokens(run: Path) -> int:
    return max((line.get("tokens", 0) for line in read_metrics(run)), default=0)


def _not_finite(run: Path) -> list[str]:
    found = []
    for line in read_metrics(run):
        if any(isinstance(v, float) and not math.isfinite(v) for v in line.values()):
            found.append(f"not finite: {line}")
    saved = Checkpoints(run).load()
    for stem in ("model", "optimizer"):
        for name, tensor in saved.open(stem).items():
            if not bool(tensor.double().isfinite().all()):
                found.append(f"{name} is not finite at step {saved.step}")
    return found


if __name__ == "__main__":
    sys.exit(main())
