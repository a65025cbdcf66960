"""One server or one worker of an asynchronous run, over ZeroMQ.

`start_server` and `start_worker` are for runs that may use several machines; the user starts and
restarts these processes. `supervisor.py` starts the others, on loopback.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

from thinwire.config import RunConfig
from thinwire.console import print_line, warn
from thinwire.errors import UserError
from thinwire.parameter_server.follower import serve_shard
from thinwire.parameter_server.serve import serve
from thinwire.parameter_server.worker import Failed, work
from thinwire.transport.keys import read_key, read_or_make_key
from thinwire.transport.zeromq import ZeroMQConnection, ZeroMQListener, split_address

POLL_SECONDS = 0.1
INTERRUPTED = 130


def serve_on_loopback(
    data: str,
    out: str,
    settings: dict[str, Any],
    resume: bool,
    shard: int,
    port_files: list[str],
) -> None:
    """A server that `run_async` has started, on loopback. It writes its port to a file."""
    file = Path(port_files[shard])
    # After a restart it takes the same port, where the others look for it.
    port = file.read_text(encoding="utf-8") if file.exists() else "0"
    addresses: list[str] = []

    def listener(max_bytes: int) -> ZeroMQListener:
        opened = ZeroMQListener(f"127.0.0.1:{port}", None, max_bytes)
        addresses.append(opened.address)
        return opened

    def ready() -> None:
        _write_port(file, split_address(addresses[0])[1])

    config, count = RunConfig.from_dict(settings), len(port_files)
    if shard > 0:
        serve_shard(
            Path(data), config, shard, count, listener=listener, ready=ready, warn=warn, threads=1
        )
        return
    connections = _connections(port_files[1:])
    serve(
        Path(data),
        Path(out),
        config,
        listener=listener,
        resume=resume,
        followers=connections,
        ready=ready,
        threads=1,
    )


def work_on_loopback(data: str, name: str, threads: int, port_files: list[str]) -> None:
    """A worker that `run_async` has started."""
    try:
        work(Path(data), _connections(port_files), name=name, threads=threads)
    except KeyboardInterrupt:  # the server prints the message
        raise SystemExit(INTERRUPTED) from None
    except Failed:  # the server prints this message too, and its status is that of the run
        return


def _connections(port_files: Sequence[str]) -> list[ZeroMQConnection]:
    """Connect to the servers at the ports in these files, which they write when they are ready.

    There is no timeout, because the parent ends this process if a server fails to start.
    """
    ports = []
    for file in map(Path, port_files):
        while not file.exists():
            sleep(POLL_SECONDS)
        ports.append(file.read_text(encoding="utf-8"))
    return [ZeroMQConnection(f"127.0.0.1:{port}", None) for port in ports]


def _write_port(file: Path, port: int) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(str(port), encoding="utf-8")
    os.replace(temporary, file)


def start_server(
    data: Path,
    out: Path,
    config: RunConfig,
    *,
    listen: str,
    shard: str = "0/1",
    servers: str = "",
    key_file: Path | None = None,
    resume: bool = False,
) -> None:
    """Run one server of a run that may use several machines.

    Args:
        data: the data folder.
        out: the run folder. Only the first server writes to it.
        config: all settings.
        listen: HOST:PORT.
        shard: I/N for the I-th server, from 0, of N.
        servers: the addresses of all servers, in order. The first of several servers needs it.
        key_file: file of the run's key, which is made if it does not exist. None: no key, which is
            allowed on loopback only.
        resume: continue from the newest checkpoint.

    Raises:
        UserError: the user can correct the cause.
    """
    replace(config.exchange, kind="async").require_applicable()
    index, count = _shard(shard)
    addresses = [address for address in servers.split(",") if address]
    if index == 0 and count > 1 and len(addresses) != count:
        raise UserError(
            f"--shard {shard} leads {count} servers, so --servers must name {count} addresses, in "
            f"the order of their shards, and it names {len(addresses)}"
        )
    key = None
    if key_file is not None:
        key, made = read_or_make_key(key_file)
        if made:
            print_line(f"Wrote the key {key_file}; copy it to the workers.")
    listeners: list[ZeroMQListener] = []

    def listener(max_bytes: int) -> ZeroMQListener:
        listeners.append(ZeroMQListener(listen, key, max_bytes))
        return listeners[0]

    def ready() -> None:
        print_line(f"Leader at {listeners[0].address}")

    if index > 0:
        serve_shard(data, config, index, count, listener=listener, ready=ready, warn=warn)
        return
    connections = [ZeroMQConnection(address, key) for address in addresses[1:]]
    serve(data, out, config, listener=listener, resume=resume, followers=connections, ready=ready)


def start_worker(
    data: Path,
    servers: str,
    *,
    key_file: Path | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> None:
    """Run one worker of a run that may use several machines.

    Args:
        data: a copy of the servers' data folder.
        servers: their addresses, HOST:PORT, separated by commas, in any order.
        key_file: file of the run's key; None: no key, for servers on loopback.
        threads: compute threads; None: as the settings of the run say.
        device: device to compute on; None: as the settings of the run say.

    Raises:
        UserError: the user can correct the cause.
    """
    key = None if key_file is None else read_key(key_file)
    connections = [ZeroMQConnection(address, key) for address in servers.split(",")]
    name = f"worker {socket.gethostname()}:{os.getpid()}"
    why = work(data, connections, name=name, threads=threads, device=device, on_status=print_line)
    print_line(f"The run has ended: {why}.")


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard is {text}, and must be I/N with I from 0 to N - 1")
    return int(index), int(count)
