"""A counter of the bytes that one end of a connection, or a collective, sends and receives."""

from __future__ import annotations

from threading import Lock


class Meter:
    """Numbers of bytes sent and received, as encoded, with thinwire's own headers. Thread-safe."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self._lock = Lock()

    def count(self, *, sent: int = 0, received: int = 0) -> None:
        """Add to both counts."""
        with self._lock:
            self.sent += sent
            self.received += received
