"""Which worker reads which part of the text, and how far each part has been read.

A run for N workers has N slots: the worker of slot p < N reads part p of N parts of the text.
Further workers may join: slot p >= N reads part p - N (or p - 2N ...) in another order, which a
seed of its own gives. A new worker takes the lowest free slot, and continues where the last worker
of that slot stopped, with fresh hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinwire.parameter_server.protocol import Position

# At most this many pushes of a worker may be lost between two that arrive.
LONGEST_JUMP = 1000
# The least fraction of an epoch that a step can be.
LEAST_PART = 1e-12


class Assignments:
    """The slots of a run.

    Args:
        num_planned: N.
        saved: what `state` returned; empty at the start of a run.
    """

    def __init__(self, num_planned: int, saved: Mapping[str, Any]) -> None:
        self.num_planned = num_planned
        self._taken: set[int] = set()
        self._positions = {int(p): Position(*found) for p, found in saved.items()}

    def take(self) -> int:
        """Take the lowest free slot."""
        slot = next(p for p in range(len(self._taken) + 1) if p not in self._taken)
        self._taken.add(slot)
        return slot

    def free(self, slot: int) -> None:
        """Free a slot."""
        self._taken.discard(slot)

    def position(self, slot: int) -> Position:
        """How far the text of a slot has been read."""
        return self._positions.get(slot, Position())

    def move(self, slot: int, position: Position) -> None:
        """Record how far the worker of a slot has read."""
        self._positions[slot] = position

    @property
    def epochs(self) -> float:
        """Passes over the text, by all workers together."""
        return sum(position.epochs for position in self._positions.values()) / self.num_planned

    def middle(self) -> tuple[int, int]:
        """The epoch and step of every worker if all had read the same amount."""
        epochs = self.epochs
        for position in self._positions.values():
            if position.epochs == epochs:
                return position.epoch, position.step
        epoch = int(epochs)
        # Steps of an epoch; what a worker says of its position may be nonsense.
        parts = [(p.step, p.epochs - p.epoch) for p in self._positions.values()]
        sizes = [step / part for step, part in parts if step and part > LEAST_PART]
        return epoch, int((epochs - epoch) * max(sizes, default=0.0))

    def check(self, slot: int, position: Position) -> None:
        """Check that a worker continues near the position of its slot.

        Raises:
            ValueError: the position has jumped.
        """
        before = self.position(slot)
        changes = [after - earlier for after, earlier in zip(position, before, strict=True)]
        if position.epoch > before.epoch:
            changes[Position._fields.index("step")] = position.step
        if any(abs(change) > LONGEST_JUMP for change in changes):
            raise ValueError(f"a worker has jumped from {before} to {position}")

    def state(self) -> dict[str, list[float]]:
        """All positions, for JSON."""
        return {str(slot): list(position) for slot, position in self._positions.items()}
