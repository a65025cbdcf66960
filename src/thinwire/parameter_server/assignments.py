"""Which worker reads which part of the text, and how far each part has been read.

A run is planned for N workers and has N slots: the worker at slot p < N reads the p-th of N
parts of the text. More may join: slot p >= N reads part p - N (or p - 2N ...) in another order,
which its own seed gives. A worker that comes takes the lowest slot that is free, and goes on where
the last one there stopped; its streams start afresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinwire.parameter_server.protocol import Position

# Between two pushes of a worker that arrive, so many are lost at most.
LONGEST_JUMP = 1000
# Of an epoch, that a step is: no text is longer.
LEAST_PART = 1e-12


class Assignments:
    """The slots of a run.

    Args:
        num_planned: N.
        saved: what `state` gave; empty: nothing has been read.
    """

    def __init__(self, num_planned: int, saved: Mapping[str, Any]) -> None:
        self.num_planned = num_planned
        self._taken: set[int] = set()
        self._positions = {int(p): Position(*found) for p, found in saved.items()}

    def take(self) -> int:
        """The lowest free slot, taken."""
        slot = next(p for p in range(len(self._taken) + 1) if p not in self._taken)
        self._taken.add(slot)
        return slot

    def free(self, slot: int) -> None:
        """Nobody reads there any more."""
        self._taken.discard(slot)

    def position(self, slot: int) -> Position:
        """How far a slot has been read."""
        return self._positions.get(slot, Position())

    def move(self, slot: int, position: Position) -> None:
        """Its worker has read on."""
        self._positions[slot] = position

    @property
    def epochs(self) -> float:
        """Passes over the text, by all workers together."""
        return sum(position.epochs for position in self._positions.values()) / self.num_planned

    def middle(self) -> tuple[int, int]:
        """Epoch and step at which every worker would stand, had all read alike."""
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
        """A worker goes on from where its slot is, a few steps at a time.

        Raises:
            ValueError: this one has jumped.
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
