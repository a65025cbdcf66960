"""From counts and measured speeds to the time of a step, for each exchange.

Seconds of a step of one of W workers; C: touch, forward and backward; B: the part of it, backward,
that goes on while early values travel; U: the update; r: the link's rate, the same up and down; k:
what the processor spends on choosing, coding, carrying and adding up what travels, by the byte and,
where all workers send to one another, by the round.

- **sync**: C + U + k + (early / r - B, if above 0) + late / r + the latency of its messages; with a
  delay late values have the next step's time, so that only what is longer than a step remains.
- **periodic**: C + U + M + k, or up / r where that is more, for its turns travel meanwhile, or
  `overlap_steps` long; M: what two updates of all rows take that any worker has changed since their
  last turn, for the outer step goes over the rows of the anchor and of this copy.
- **async**: a worker computes for C + k, then its push goes up, is applied, and what the next step
  cannot do without, `awaited`, comes down; only the rows that were pulled ahead are hidden. The W
  workers queue for the links and the processors of M servers, which is a closed queueing network,
  worked out by mean value analysis (Reiser and Lavenberg, JACM 27, 1980). A step is no shorter
  than the servers' links take for all that comes down: W down / (M r).

The model leaves out that processors shared by several workers slow each other down beyond their
share, that arithmetic is slower while something travels beside it, that workers wait for the
slowest, and what a real network does besides having a rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from thinwire.plan.learning import learning
from thinwire.plan.machine import LARGE_BYTES, Machine
from thinwire.plan.traffic import Sent

SYNC_MESSAGES = 2
"""What late values take, one after the other: parts, and their sums."""
MERGING = 2.0


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
    batch: int
    """Sequences a step of a worker."""
    local_steps: int
    """Steps between two exchanges of the same row of a block; 1 where every step exchanges."""
    fragments: int
    """In which the blocks are exchanged (periodic)."""
    row_steps: int
    """Steps between two exchanges of the same row of a table; 1 where every step exchanges."""
    overlap_steps: int
    """For which what was sent travels; 0: until the next turn (periodic)."""
    learning: float
    """How much a token teaches, beside one of a single worker with the default batch."""

    @property
    def learnt_per_second(self) -> float:
        """Tokens/s, counted as tokens of a single worker with the default batch."""
        return self.tokens_per_second * self.learning

    @property
    def flags(self) -> dict[str, str | int]:
        """What makes `thinwire train` take it."""
        flags: dict[str, str | int] = {"exchange": self.exchange, "codec": self.codec}
        flags["data.batch"] = self.batch
        if self.exchange == "periodic":
            flags["exchange.local_steps"] = self.local_steps
            flags["exchange.fragments"] = self.fragments
            flags["exchange.row_steps"] = self.row_steps
            flags["exchange.overlap_steps"] = self.overlap_steps
        return flags

    @property
    def name(self) -> str:
        """Exchange and codec or, where everything travels, `all`."""
        return f"{self.exchange} {self.codec if self.select == 'rows' else 'all'}".strip()


@dataclass(frozen=True)
class Link:
    """Bytes a second each way, and seconds for a message to arrive."""

    rate: float
    latency_seconds: float = 2e-4


LOOPBACK = Link(inf, 0.0)
"""Between workers of one machine: what they send takes what their processors spend on it."""


def alone(machine: Machine, memory_bytes: float, batch: int) -> Forecast:
    """One worker."""
    return Forecast(
        exchange="none",
        codec="",
        select="rows",
        workers=1,
        step_seconds=machine.step,
        tokens_per_second=machine.tokens / machine.step,
        step_bytes=0.0,
        dense_share=0.0,
        hidden_share=1.0,
        memory_bytes=memory_bytes,
        batch=batch,
        local_steps=1,
        fragments=1,
        row_steps=1,
        overlap_steps=0,
        learning=learning("none", 1, batch),
    )


def sync_seconds(
    machine: Machine, sent: Sent, codec: str, link: Link, delay: int = 0
) -> tuple[float, float]:
    """A step, and the part of the wire's time that is hidden."""
    early, late = sent.early / link.rate, sent.late / link.rate
    latency = SYNC_MESSAGES * link.latency_seconds
    spent = _exchanging(machine, sent, codec)
    step = machine.touch + machine.forward + machine.backward + _update(machine, sent) + spent
    if delay:
        shown = max(0.0, early - machine.backward, early + late + latency - step)
    else:
        shown = max(0.0, early - machine.backward) + late + latency
    return step + shown, _hidden_share(shown, early + late)


def periodic_seconds(
    machine: Machine, sent: Sent, codec: str, link: Link, overlap_steps: int = 0
) -> tuple[float, float]:
    """A step on average, and the part of the wire's time that is hidden."""
    merging = MERGING * sent.merged * machine.update_row
    spent = _exchanging(machine, sent, codec)
    computing = machine.step + merging + spent
    wire = sent.up / link.rate
    shown = max(0.0, wire - computing)
    if overlap_steps:
        shown = max(shown, wire - sent.turns * overlap_steps * computing)
    return computing + shown, _hidden_share(shown, wire)


def async_seconds(
    machine: Machine, sent: Sent, codec: str, link: Link, workers: int, servers: int = 1
) -> tuple[float, float]:
    """A step of one worker, and the part of the wire's time that is hidden."""
    spent = _messages(machine, sent, codec)
    computing = machine.touch + machine.forward + machine.backward + spent
    up, awaited = sent.up / link.rate, sent.awaited / link.rate
    # A worker speaks to all servers at once, over a link that is its own.
    own_link = (up + awaited) * (1.0 - 1.0 / servers)
    stations = [up / servers, (_update(machine, sent) + spent) / servers, awaited / servers]
    step = queueing_seconds(computing + own_link + 2.0 * link.latency_seconds, stations, workers)
    step = max(step, workers * sent.down / (servers * link.rate))
    wire = (sent.up + sent.down) / link.rate
    return step, _hidden_share(step - computing, wire)


def queueing_seconds(thinking: float, stations: Sequence[float], customers: int) -> float:
    """How long a customer's round takes on average, by mean value analysis.

    Args:
        thinking: seconds of a round in which it waits for nobody.
        stations: seconds that each station needs to serve it, one customer after the other.
        customers: how many there are.
    """
    queues = [0.0] * len(stations)
    cycle = thinking
    for number in range(1, customers + 1):
        stays = [seconds * (1.0 + queue) for seconds, queue in zip(stations, queues, strict=True)]
        cycle = thinking + sum(stays)
        queues = [number / cycle * stay for stay in stays]
    return cycle


def _update(machine: Machine, sent: Sent) -> float:
    """Of what all workers' rows come to (sync), or a worker's own."""
    return machine.update + max(0.0, sent.rows - machine.rows) * machine.update_row


def _hidden_share(shown: float, wire: float) -> float:
    """The part of the wire's seconds that a step does not wait for."""
    return max(0.0, 1.0 - shown / wire) if wire else 1.0


def _exchanging(machine: Machine, sent: Sent, codec: str) -> float:
    """What the processor of a worker spends on exchanging with other workers."""
    return machine.exchange_byte[codec] * (sent.up + sent.down) + machine.round * sent.rounds


def _messages(machine: Machine, sent: Sent, codec: str) -> float:
    """What that of a worker or of a server spends on their messages, of which it codes one way."""
    is_large = max(sent.up, sent.down) > LARGE_BYTES
    carry_byte = machine.large_message_byte if is_large else machine.message_byte
    travels = sent.up + sent.down
    coded = {**sent.other_codecs}
    coded[codec] = travels - sum(coded.values())
    coding = sum(machine.code_byte[name] / 2 * num_bytes for name, num_bytes in coded.items())
    return coding + carry_byte * travels
