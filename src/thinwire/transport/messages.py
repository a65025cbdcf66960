"""Messages: a server at its listener, and the connections that lead to it.

A message is one string of bytes. Nobody promises that it arrives: it may be lost, late, or come
twice, and who is at the other end may be another process than a moment ago. Whoever sends has to
live with that. Every message is counted at the listener and at the connection, both ways, as it
is sent and received.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from threading import Condition
from typing import Literal

import torch
from torch import Tensor

from thinwire.wire.meter import Meter

Fate = Literal["lost", "twice", "late", "spoilt"]


class Listener(ABC):
    """Where a server receives the messages of all its clients and answers each of them."""

    def __init__(self) -> None:
        self.meter = Meter()

    @abstractmethod
    def receive(self, timeout_seconds: float) -> tuple[bytes, Tensor] | None:
        """The next message, uint8, and the return address of who sent it; None: none came."""

    @abstractmethod
    def send(self, client: bytes, message: Tensor) -> None:
        """Send to a return address; never waits. What is sent must not change any more."""

    @abstractmethod
    def close(self) -> None:
        """Let what was sent get out, for a moment, and shut."""


class Connection(ABC):
    """A client's connection to one server.

    Args:
        server: what to call the server in a sentence.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.meter = Meter()

    @abstractmethod
    def send(self, message: Tensor) -> None:
        """Send to the server; never waits. What is sent must not change any more."""

    @abstractmethod
    def receive(self, timeout_seconds: float) -> Tensor | None:
        """The next message, uint8; None: none came."""

    @abstractmethod
    def close(self) -> None:
        """Let what was sent get out, for a moment, and hang up."""


class InProcessListener(Listener):
    """A listener for clients in the same process: threads, or one thread that takes turns.

    In one thread a connection that has nothing to receive lets `serve` work, which says whether
    it found anything to do; so a test decides who does what when.
    """

    def __init__(self) -> None:
        super().__init__()
        self.serve: Callable[[], bool] | None = None
        self.changed = Condition()
        self._arrived: deque[tuple[bytes, Tensor]] = deque()
        self._connections: list[InProcessConnection] = []

    def connection(self) -> InProcessConnection:
        """A new client's connection."""
        connection = InProcessConnection(self, len(self._connections).to_bytes(4, "little"))
        self._connections.append(connection)
        return connection

    def put(self, client: bytes, message: Tensor) -> None:
        """Take a message from a connection."""
        with self.changed:
            self._arrived.append((client, message))
            self.changed.notify_all()

    def receive(self, timeout_seconds: float) -> tuple[bytes, Tensor] | None:
        """See `Listener`."""
        with self.changed:
            if not self.changed.wait_for(lambda: bool(self._arrived), timeout_seconds):
                return None
            client, message = self._arrived.popleft()
        self.meter.count(received=len(message))
        return client, message

    def send(self, client: bytes, message: Tensor) -> None:
        """See `Listener`."""
        self.meter.count(sent=len(message))
        self._connections[int.from_bytes(client, "little")].put(message)

    def close(self) -> None:
        """Nothing to do."""


class InProcessConnection(Connection):
    """A connection to an `InProcessListener`."""

    def __init__(self, listener: InProcessListener, client: bytes) -> None:
        super().__init__("the server in this process")
        self._door, self._client = listener, client
        self._arrived: deque[Tensor] = deque()

    def put(self, message: Tensor) -> None:
        """Take a message from the listener."""
        with self._door.changed:
            self._arrived.append(message)
            self._door.changed.notify_all()

    def send(self, message: Tensor) -> None:
        """See `Connection`."""
        self.meter.count(sent=len(message))
        self._door.put(self._client, message)

    def receive(self, timeout_seconds: float) -> Tensor | None:
        """See `Connection`."""
        if self._door.serve is not None:
            timeout_seconds = 0.0
            while not self._arrived and self._door.serve():
                pass
        with self._door.changed:
            if not self._door.changed.wait_for(lambda: bool(self._arrived), timeout_seconds):
                return None
            message = self._arrived.popleft()
        self.meter.count(received=len(message))
        return message

    def close(self) -> None:
        """Nothing to do."""


class UnreliableConnection(Connection):
    """Passes messages on, but for those that a fate awaits: for tests.

    lost: it is not passed on; twice: it is, twice; late: only after the one that follows it;
    spoilt: with a byte changed in its head.

    Args:
        inner: what messages are passed on to.
        sending: the fate of the n-th message sent, from 0.
        receiving: the fate of the n-th message received.
    """

    def __init__(
        self,
        inner: Connection,
        sending: Mapping[int, Fate] | None = None,
        receiving: Mapping[int, Fate] | None = None,
    ) -> None:
        super().__init__(inner.server)
        self.meter = inner.meter
        self._inner = inner
        self._sending, self._receiving = dict(sending or {}), dict(receiving or {})
        self._num_sent = self._num_received = 0
        self._held_back: list[Tensor] = []
        self._arrived: deque[Tensor] = deque()
        self._late: list[Tensor] = []

    def send(self, message: Tensor) -> None:
        """See `Connection`."""
        fate = self._sending.get(self._num_sent)
        self._num_sent += 1
        if fate == "late":
            self._held_back.append(message)
            return
        for copy in _after(fate, message):
            self._inner.send(copy)
        while self._held_back:
            self._inner.send(self._held_back.pop(0))

    def receive(self, timeout_seconds: float) -> Tensor | None:
        """See `Connection`."""
        if self._arrived:
            return self._arrived.popleft()
        message = self._inner.receive(timeout_seconds)
        if message is None:
            return None
        fate = self._receiving.get(self._num_received)
        self._num_received += 1
        if fate == "late":
            self._late.append(message)
            return None
        self._arrived.extend([*_after(fate, message), *self._late])
        self._late.clear()
        return self._arrived.popleft() if self._arrived else None

    def close(self) -> None:
        """See `Connection`."""
        self._inner.close()


def _after(fate: Fate | None, message: Tensor) -> list[Tensor]:
    if fate == "lost":
        return []
    if fate == "twice":
        return [message, message]
    if fate == "spoilt":
        spoilt = message.clone()
        spoilt[0] ^= torch.tensor(1, dtype=torch.uint8)
        return [spoilt]
    return [message]
