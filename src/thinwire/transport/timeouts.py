"""Timeouts between workers that are not settings."""

from __future__ import annotations

RENDEZVOUS_SECONDS = 60.0
"""Shortest time to wait for a worker to appear: starting takes longer than answering."""
ROLL_CALL_SECONDS = 10.0
"""Longest time that the workers take to find out which of them is missing."""
