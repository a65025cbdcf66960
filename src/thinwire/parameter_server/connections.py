"""A worker's connections to the servers: joining, messages, keep-alives."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

from torch import Tensor

from thinwire.errors import UserError
from thinwire.parameter_server.protocol import (
    PROTOCOL,
    Kind,
    Position,
    WireAccount,
    has_failed,
    incarnation_of,
    json_message,
    json_of,
    read_message,
    small_message,
    text_of,
)
from thinwire.parameter_server.session import ALIVE_SECONDS
from thinwire.transport.messages import Connection
from thinwire.transport.timeouts import RENDEZVOUS_SECONDS
from thinwire.wire.frames import Frame

INCARNATION_BITS = 48
# How soon a worker that waits notices that it was asked to stop.
POLL_SECONDS = 0.2


class Stopped(Exception):
    """The run has ended; the message says why."""

    def __init__(self, why: str, *, failed: bool) -> None:
        super().__init__(why)
        self.failed = failed


class Lost(Exception):
    """A server does not know this worker, or is silent: the worker has to join again."""


class Interrupted(Exception):
    """This worker was asked to stop."""


@dataclass(frozen=True)
class Welcome:
    """What a worker learns when it joins; `run` changes when servers are restarted."""

    run: str
    slot: int
    position: Position
    settings: dict[str, Any]


class Servers:
    """All servers of a run, as one worker sees them.

    Args:
        connections: one to each server, in any order.
        data: the data folder's fingerprint.
        version: of thinwire.
        name: this worker's name in sentences.
        timeout_seconds: the longest wait for a server's answer.
        stopping: returns whether this worker was asked to stop.
        rendezvous_seconds: the least time that a server has to answer HELLO: one that was restarted
            needs more time to start than to answer.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        *,
        data: str,
        version: str,
        name: str,
        timeout_seconds: float,
        stopping: Callable[[], bool] = lambda: False,
        rendezvous_seconds: float = RENDEZVOUS_SECONDS,
    ) -> None:
        self.connections = list(connections)
        self.timeout_seconds, self._rendezvous_seconds = timeout_seconds, rendezvous_seconds
        self.incarnation = 0
        self._hello = {"protocol": PROTOCOL, "thinwire": version, "data": data, "name": name}
        self._stopping = stopping
        self._waited_seconds = 0.0
        self._account_at_join = WireAccount()

    def join(self) -> Welcome:
        """Say HELLO to every server until each has said WELCOME, and sort the connections by shard.

        Raises:
            UserError: a server refuses, does not answer in time, or is not of the same run.
            Stopped: the run has ended.
        """
        self.incarnation = 1 + secrets.randbits(INCARNATION_BITS)
        hello = json_message(Kind.HELLO, self._hello | {"incarnation": self.incarnation})
        found = [self._join_one(connection, hello) for connection in self.connections]
        order = self._order(found)
        self.connections = [self.connections[index] for index in order]
        self._account_at_join = self._total()
        first = found[order[0]]
        position = Position(*first["position"])
        return Welcome(first["run"], first["slot"], position, first["settings"])

    def _join_one(self, connection: Connection, hello: Tensor) -> dict[str, Any]:
        patience_seconds = max(self.timeout_seconds, self._rendezvous_seconds)
        last_hello, deadline = float("-inf"), monotonic() + patience_seconds
        while monotonic() < deadline:
            if monotonic() - last_hello >= ALIVE_SECONDS:
                last_hello = monotonic()
                connection.send(hello)
            received = self._receive(connection, ALIVE_SECONDS)
            if received is None:
                continue
            kind, frame = received
            if kind is Kind.REFUSED:
                raise UserError(text_of(frame))
            if kind is Kind.WELCOME and json_of(frame).get("incarnation") == self.incarnation:
                return json_of(frame)
        raise UserError(
            f"the server {connection.server} has not answered {self._hello['name']} for "
            f"{patience_seconds:g} seconds: is it running, and has it the same key?"
        )

    def _order(self, found: Sequence[Mapping[str, Any]]) -> list[int]:
        names = [connection.server for connection in self.connections]
        for name, welcome in zip(names, found, strict=True):
            if welcome["run"] != found[0]["run"]:
                raise UserError(
                    f"{names[0]} serves the run {found[0]['run']}, and {name} the run "
                    f"{welcome['run']}: name servers of one run"
                )
        if found[0]["num_shards"] != len(found):
            raise UserError(
                f"the run has {found[0]['num_shards']} servers, and {len(found)} are named: "
                f"{', '.join(names)}"
            )
        shards = [welcome["shard"] for welcome in found]
        for index, shard in enumerate(shards):
            if shard in shards[:index]:
                raise UserError(
                    f"{names[shards.index(shard)]} and {names[index]} are the same server of the "
                    f"run, the one with shard {shard}"
                )
        return sorted(range(len(shards)), key=lambda index: shards[index])

    def send(self, index: int, message: Tensor) -> None:
        """Send to server `index`."""
        self.connections[index].send(message)

    def poll(self, index: int) -> tuple[Kind, Frame] | None:
        """A message of server `index` that has arrived already, or None."""
        return self._receive(self.connections[index], 0.0)

    def wait(self, index: int) -> tuple[Kind, Frame]:
        """Wait for the next message of server `index`, and send ALIVE meanwhile.

        Raises:
            Lost: the server is silent, or does not know this worker.
            Stopped: the run has ended.
            Interrupted: this worker has to stop.
        """
        began = perf_counter()
        try:
            while True:
                received = self._receive(self.connections[index], ALIVE_SECONDS)
                if received is not None:
                    return received
                if perf_counter() - began >= self.timeout_seconds:
                    raise Lost
                self.connections[index].send(small_message(Kind.ALIVE, self.incarnation))
        finally:
            self._waited_seconds += perf_counter() - began

    def goodbye(self) -> None:
        """Leave, and send the final account of the wire."""
        for index in range(len(self.connections)):
            self.send(index, small_message(Kind.GOODBYE, self.incarnation, *self.account()))

    def account(self) -> WireAccount:
        """Seconds waited, bytes sent and bytes received since the last HELLO."""
        pairs = zip(self._total(), self._account_at_join, strict=True)
        return WireAccount(*(now - before for now, before in pairs))

    def _total(self) -> WireAccount:
        sent = sum(connection.meter.sent for connection in self.connections)
        received = sum(connection.meter.received for connection in self.connections)
        return WireAccount(self._waited_seconds, sent, received)

    def _receive(self, connection: Connection, timeout_seconds: float) -> tuple[Kind, Frame] | None:
        """The next message that can be read and is for this incarnation."""
        deadline = monotonic() + timeout_seconds
        while True:
            if self._stopping():
                raise Interrupted
            message = connection.receive(min(POLL_SECONDS, max(0.0, deadline - monotonic())))
            if message is not None:
                with suppress(ValueError):
                    kind, frame = read_message(message)
                    if kind is Kind.STOP:
                        raise Stopped(text_of(frame), failed=has_failed(frame))
                    if kind in (Kind.WELCOME, Kind.REFUSED):
                        return kind, frame
                    if incarnation_of(frame) == self.incarnation:
                        if kind is Kind.UNKNOWN:
                            raise Lost
                        return kind, frame
            elif monotonic() >= deadline:
                return None
