"""Counts the bytes that pass the listener."""

from __future__ import annotations

from threading import Lock


class Meter:
    """Bytes sent and received, after encoding, headers included. Threads may share one."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self._lock = Lock()

    def count(self, *, sent: int = 0, received: int = 0) -> None:
        """Add to both counts."""
        with self._lock:
            self.sent += sent
            self.received += received
