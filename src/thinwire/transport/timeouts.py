"""How long workers wait for one another, beside what the settings say."""

from __future__ import annotations

MEETING_SECONDS = 60.0
"""The least time that a worker is given to come: starting takes longer than answering."""
ROLL_CALL_SECONDS = 10.0
"""The longest that workers take to find out which one is missing."""
