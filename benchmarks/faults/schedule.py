"""What strikes a run, whom and when: all of it follows from a seed and the exchange."""

from __future__ import annotations

import random
from dataclasses import dataclass

TIMEOUT_SECONDS = 6.0
"""`exchange.timeout_seconds` of every run: some faults last longer."""
ROLES = {
    "sync": ("lead", "worker"),
    "periodic": ("lead", "worker"),
    "async": ("lead", "worker"),
    "async2": ("lead", "follower", "worker"),
    "supervised": ("lead", "follower", "worker"),
}
# Kinds of faults with their weights.
KINDS = {"kill": 6, "stop": 4, "term": 3, "cut": 2, "slow": 2, "disk": 1, "clock": 2}
CLOCK_JUMPS_SECONDS = (-86_400, -90, 90, 86_400)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: one of `KINDS`.
        role: whom it strikes: the first worker or server (lead), another server (follower), or
            a worker.
        pick: in [0, 1): which of several of that role.
        at: the part of the budget after which it strikes.
        soon: strike this many seconds after the one before, wherever the run stands; None: at `at`.
        seconds: how long it lasts; of a clock, by how much it jumps.
    """

    kind: str
    role: str
    pick: float
    at: float
    soon: float | None
    seconds: float

    def __str__(self) -> str:
        when = f"at {self.at:.2f}" if self.soon is None else f"{self.soon:.1f} s later"
        last = "" if self.kind in ("kill", "term") else f", {self.seconds:.1f} s"
        return f"{when}: {self.kind} {self.role}{last}"


def schedule(seed: int, exchange: str, num_faults: int, *, in_cluster: bool = True) -> list[Fault]:
    """The faults of a run, in the order in which they strike.

    Args:
        seed: of the run.
        exchange: one of `ROLES`.
        num_faults: how many.
        in_cluster: whether links, disks and clocks can fail too.
    """
    rng = random.Random(f"{seed} {exchange}")
    kinds = {k: w for k, w in KINDS.items() if in_cluster or k in ("kill", "stop", "term")}
    if exchange == "supervised":  # it stays on one machine
        kinds = {k: w for k, w in kinds.items() if k not in ("cut", "slow")}
    faults: list[Fault] = []
    for at in sorted(rng.uniform(0.02, 1.0) for _ in range(num_faults)):
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        role = "lead" if kind == "disk" else rng.choice(ROLES[exchange])
        longest = 2.0 if rng.random() < 0.3 else 0.6
        seconds = rng.uniform(0.1, longest) * TIMEOUT_SECONDS
        if kind == "clock":
            seconds = rng.choice(CLOCK_JUMPS_SECONDS)
        soon = rng.uniform(0.0, 4.0) if faults and rng.random() < 0.2 else None
        faults.append(Fault(kind, role, rng.random(), at, soon, seconds))
    return faults
