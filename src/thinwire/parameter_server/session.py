"""What a server knows of one worker, from HELLO to GOODBYE."""

from __future__ import annotations

from dataclasses import dataclass, field

from thinwire.parameter_server.protocol import Pull, WireAccount
from thinwire.parameter_server.shard import Held

# A worker that waits sends ALIVE this often, and a server that keeps it waiting sends WAIT.
ALIVE_SECONDS = 1.0
# A worker that waits asks once a second: one that is silent for this long has its answer, or has
# gone.
SILENCE_SECONDS = 3 * ALIVE_SECONDS
# A worker counts as computing for at most this many times its slowest step.
SLOWER = 2.0
# Pushes that are missing are given up after this many later ones.
PUSHES_REMEMBERED = 100


class SeenNumbers:
    """Numbers from 1 on, which may arrive out of order; each counts once."""

    def __init__(self) -> None:
        self._highest = 0
        self._missing: set[int] = set()

    def first(self, number: int) -> bool:
        """Whether this number arrives for the first time."""
        if number in self._missing:
            self._missing.remove(number)
            return True
        if number <= self._highest:
            return False
        oldest = number - PUSHES_REMEMBERED
        self._missing.update(range(max(self._highest + 1, oldest), number))
        self._missing = {missing for missing in self._missing if missing >= oldest}
        self._highest = number
        return True


@dataclass
class Session:
    """A worker that has joined this server.

    Attributes:
        incarnation: the number that it drew when it joined.
        name: its name in sentences.
        slot: which part of the text it reads.
        client: its return address.
        heard: when its last message arrived, on the server's clock.
        held: what it has of this server's rows.
        pushes: the numbers of its pushes that have arrived.
        newest_step: its newest pull that began a step and was answered.
        newest_push: the newest pull whose step it has pushed.
        step_began: when `newest_step` was answered, on the server's clock.
        slowest_seconds: the duration of its slowest step so far.
        pushed: whether any of its pushes has arrived.
        refused_pushes: how many of its last pushes in a row could not be applied.
        waiting: its pull that is deferred.
        wire: its own account of the wire.
    """

    incarnation: int
    name: str
    client: bytes
    heard: float
    slot: int = 0
    held: Held = field(default_factory=Held)
    pushes: SeenNumbers = field(default_factory=SeenNumbers)
    newest_step: int = 0
    newest_push: int = 0
    step_began: float = 0.0
    slowest_seconds: float = 0.0
    pushed: bool = False
    refused_pushes: int = 0
    waiting: Pull | None = None
    wire: WireAccount = field(default_factory=WireAccount)

    def computes(self, now: float) -> bool:
        """Whether it is computing a step: it has the rows, has not pushed, and is not overdue.

        A worker that computes is silent, and so is a worker that has died, until it is dropped.
        Because of the limit, a dead worker is not waited for until it is dropped.
        """
        most = max(SILENCE_SECONDS, SLOWER * self.slowest_seconds)
        return self.newest_step > self.newest_push and now - self.step_began <= most

    def step_begins(self, pull: int, now: float) -> None:
        """Record that a step's pull was answered."""
        self.newest_step, self.step_began = pull, now

    def step_ends(self, pull: int, now: float) -> None:
        """Record that a step's push has arrived."""
        self.pushed = True
        if pull == self.newest_step > self.newest_push:
            self.slowest_seconds = max(self.slowest_seconds, now - self.step_began)
        self.newest_push = max(self.newest_push, pull)
