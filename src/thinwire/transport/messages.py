"""Messages between a server, which has a listener, and its clients, which have connections to it.

A message is a string of bytes. Delivery is not guaranteed: a message may be lost, delayed or
delivered twice, and the process at the other end may have been replaced. Senders must handle this.
Listeners and connections count the bytes of every message that they send and receive.
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

Fault = Literal["lost", "twice", "late", "spoilt"]


class Listener(ABC):
    """A server's end: receives the messages of all clients and answers each of them."""

    def __init__(self) -> None:
        self.meter = Meter()

    @abstractmethod
    def receive(self, timeout_seconds: float) -> tuple[bytes, Tensor] | None:
        """The next message, uint8, and the return address of its sender; None: the time is over."""

    @abstractmethod
    def send(self, client: bytes, message: Tensor) -> None:
        """Send to a return address; never waits. The message must not be changed afterwards."""

    @abstractmethod
    def close(self) -> None:
        """Wait briefly until sent messages have left, and close."""


class Connection(ABC):
    """A client's connection to one server.

    Args:
        server: the name of the server, as messages to the user give it.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.meter = Meter()

    @abstractmethod
    def send(self, message: Tensor) -> None:
        """Send to the server; never waits. The message must not be changed afterwards."""

    @abstractmethod
    def receive(self, timeout_seconds: float) -> Tensor | None:
        """The next message, uint8; None: the time is over."""

    @abstractmethod
    def close(self) -> None:
        """Wait briefly until sent messages have left, and close."""


class InProcessListener(Listener):
    """A listener for clients in the same process: in other threads, or in the same thread.

    In the same thread, a connection that has nothing to receive calls `serve`, which returns
    whether it found anything to do. So a test decides the order of events.
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
        self._listener, self._client = listener, client
        self._arrived: deque[Tensor] = deque()

    def put(self, message: Tensor) -> None:
        """Take a message from the listener."""
        with self._listener.changed:
            self._arrived.append(message)
            self._listener.changed.notify_all()

    def send(self, message: Tensor) -> None:
        """See `Connection`."""
        self.meter.count(sent=len(message))
        self._listener.put(self._client, message)

    def receive(self, timeout_seconds: float) -> Tensor | None:
        """See `Connection`."""
        if self._listener.serve is not None:
            timeout_seconds = 0.0
            while not self._arrived and self._listener.serve():
                pass
        with self._listener.changed:
            if not self._listener.changed.wait_for(lambda: bool(self._arrived), timeout_seconds):
                return None
            message = self._arrived.popleft()
        self.meter.count(received=len(message))
        return message

    def close(self) -> None:
        """Nothing to do."""


class UnreliableConnection(Connection):
    """Forwards messages to another connection, some of them with a fault: for tests.

    lost: the message is dropped; twice: it is delivered twice; late: it is delivered after the next
    message; spoilt: its first byte is changed.

    Args:
        inner: the connection that delivers the messages.
        sending: the fault of the n-th message sent, from 0.
        receiving: the fault of the n-th message received.
    """

    def __init__(
        self,
        inner: Connection,
        sending: Mapping[int, Fault] | None = None,
        receiving: Mapping[int, Fault] | None = None,
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
        fault = self._sending.get(self._num_sent)
        self._num_sent += 1
        if fault == "late":
            self._held_back.append(message)
            return
        for copy in _faulty(fault, message):
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
        fault = self._receiving.get(self._num_received)
        self._num_received += 1
        if fault == "late":
            self._late.append(message)
            return None
        self._arrived.extend([*_faulty(fault, message), *self._late])
        self._late.clear()
        return self._arrived.popleft() if self._arrived else None

    def close(self) -> None:
        """See `Connection`."""
        self._inner.close()


def _faulty(fault: Fault | None, message: Tensor) -> list[Tensor]:
    if fault == "lost":
        return []
    if fault == "twice":
        return [message, message]
    if fault == "spoilt":
        spoilt = message.clone()
        spoilt[0] ^= torch.tensor(1, dtype=torch.uint8)
        return [spoilt]
    return [message]
