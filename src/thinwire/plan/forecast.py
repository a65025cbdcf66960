"""From counts and measured speeds to the time of a step, for each exchange.

Seconds of a step of one of W workers; C: touch, forward and backward; B: the part of it, backward,
that goes on while early values travel; U: the update; r: the link's rate, the same up and down; k:
what the processor spends on coding and sending.

- **sync**: C + U + k + (early / r - B, if above 0) + late / r + the latency of its messages; with a
  delay, the larger of C + U + k and what its messages take, as nothing waits for them.
- **periodic**: C + U + k, or up / r where that is more, for its turns travel meanwhile.
- **async**: the largest of C + k, up / r, down / r, and what the servers need for W workers: their
  processors' W (U + k) / M and their links' W up / (M r) and W down / (M r), for M servers.

The model leaves out that processors shared by several workers slow each other down beyond their
share, and what a real network does besides having a rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.plan.counts import Sent
from thinwire.plan.machine import Machine

SYNC_MESSAGES = 6


@dataclass(frozen=True)
class Forecast:
    """One row of the plan."""

    exchange: str
    codec: str
    select: str
    workers: int
    step_seconds: float
    tokens_per_second: float
    step_bytes: float
    """Bytes that a worker sends in a step."""
    dense_share: float
    """Of what it would send densely."""
    hidden_share: float
    """The part of the wire's time that passes while the worker computes."""
    memory_bytes: float
    """Of one worker: parameters, row state and, where it has them, copies."""

    @property
    def name(self) -> str:
        """Exchange and codec or, for the dense baseline, selection."""
        return f"{self.exchange} {self.codec if self.select == 'rows' else 'dense'}".strip()


@dataclass(frozen=True)
class Link:
    """Bytes a second each way, and seconds for a message to arrive."""

    rate: float
    latency_seconds: float = 2e-4


def alone(machine: Machine, memory_bytes: float) -> Forecast:
    """One worker."""
    rate = machine.tokens / machine.step
    return Forecast("none", "", "rows", 1, machine.step, rate, 0.0, 0.0, 1.0, memory_bytes)


def sync_seconds(
    machine: Machine, sent: Sent, codec: str, link: Link, delay: int = 0
) -> tuple[float, float]:
    """A step, and the part of the wire's time that is hidden."""
    early, late = sent.early / link.rate, sent.late / link.rate
    latency = SYNC_MESSAGES * link.latency_seconds
    spent = _spent(machine, sent.up, sent.down, codec)
    step = machine.touch + machine.forward + machine.backward + _update(machine, sent) + spent
    if delay:
        shown = max(0.0, early + late + latency - step)
    else:
        shown = max(0.0, early - machine.backward) + late + latency
    return step + shown, 1.0 - shown / max(shown, early + late)


def periodic_seconds(machine: Machine, sent: Sent, codec: str, link: Link) -> tuple[float, float]:
    """A step on average, and the part of the wire's time that is hidden."""
    computing = machine.step + _spent(machine, sent.up, sent.down, codec)
    wire = sent.up / link.rate
    step = max(computing, wire)
    return step, min(1.0, computing / wire) if wire else 1.0


def async_seconds(
    machine: Machine, sent: Sent, codec: str, link: Link, workers: int, servers: int = 1
) -> tuple[float, float]:
    """A step of one worker, and the part of the wire's time that is hidden."""
    spent = _spent(machine, sent.up, sent.down, codec)
    computing = machine.touch + machine.forward + machine.backward + spent
    serving = workers * (_update(machine, sent) + spent) / servers
    wire = max(sent.up, sent.down) / link.rate
    shared = workers * wire / servers
    step = max(computing, wire, serving, shared)
    return step, min(1.0, computing / max(wire, shared))


def _update(machine: Machine, sent: Sent) -> float:
    return machine.update + max(0.0, sent.rows * machine.update_row - machine.update)


def _spent(machine: Machine, up: float, down: float, codec: str) -> float:
    """Coding is measured by the byte of fp32, and what travels is narrower."""
    widening = {"fp32": 1.0, "bf16": 2.0, "int8": 4.0}[codec]
    coding = machine.code_byte[codec] * widening * (up + down) / 2
    return coding + machine.send_byte * (up + down)
