"""Forecasts the seconds of a step for each exchange, from measured speeds and counted bytes.

For one of W workers, in seconds per step: C is touch, forward and backward; B is backward alone,
during which early values are sent; U is the update; k is the CPU time for selecting, coding,
sending and summing, which depends on the bytes and on the rounds of messages. r is the rate of the
link in bytes per second, in each direction.

- **sync**: C + U + k + max(0, early / r - B) + late / r + latency. With a delay, late values are
  sent during the next step, so only the time beyond a whole step is added.
- **periodic**: max(C + U + M + k, up / r), because turns are sent during the local steps. With
  `overlap_steps`, only these steps hide the time on the wire. M is the time of two updates of all
  rows that any worker has changed since their last turn, because the outer step changes the anchor
  and this worker's copy.
- **async**: a worker computes for C + k. Then its push is sent and applied, and `awaited`, without
  which the next step cannot start, is received. Only rows that were pulled ahead are hidden. The W
  workers queue for the links and CPUs of M servers. This is a closed queueing network, solved by
  mean value analysis (Reiser and Lavenberg, JACM 27, 1980). The servers' links need at least
  W down / (M r) per step.

The model leaves out four effects: workers that share a CPU slow each other down by more than their
share, computation is slower while data is sent, workers wait for the slowest one, and real networks
have more properties than a rate and a latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from thinwire.plan.learning import learning
from thinwire.plan.machine import LARGE_BYTES, Machine
from thinwire.plan.traffic import Sent

SYNC_MESSAGES = 2
"""Number of consecutive messages of late values: the parts, then their sums."""
MERGING = 2.0


@dataclass(frozen=True)
class Forecast:
    """The forecast for one exchange: one row of the plan."""

    exchange: str
    codec: str
    select: str
    workers: int
    step_seconds: float
    tokens_per_second: float
    step_bytes: float
    """Bytes that a worker sends in a step."""
    dense_share: float
    """Bytes sent, divided by those of an all-reduce of all parameters in fp32."""
    hidden_share: float
    """Fraction of the time on the wire that passes while the worker computes."""
    memory_bytes: float
    """Bytes of memory of one worker: parameters, state of the optimisers, and copies, if any."""
    batch: int
    """Sequences per step of a worker."""
    local_steps: int
    """Steps between two exchanges of the same row of a block; 1 where every step exchanges."""
    fragments: int
    """Number of fragments of the blocks (periodic)."""
    row_steps: int
    """Steps between two exchanges of the same row of a table; 1 where every step exchanges."""
    overlap_steps: int
    """Steps between sending and the outer step; 0: until the next turn (periodic)."""
    learning: float
    """Learning efficiency of a token, relative to a single worker with the default batch."""

    @property
    def learnt_per_second(self) -> float:
        """Tokens per second, times their learning efficiency."""
        return self.tokens_per_second * self.learning

    @property
    def flags(self) -> dict[str, str | int]:
        """The flags with which `thinwire train` uses this exchange."""
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
        """The exchange and its codec; `all` in place of the codec if everything is sent."""
        return f"{self.exchange} {self.codec if self.select == 'rows' else 'all'}".strip()


@dataclass(frozen=True)
class Link:
    """A link: bytes per second in each direction, and seconds until a message arrives."""

    rate: float
    latency_seconds: float = 2e-4


LOOPBACK = Link(inf, 0.0)
"""The link between workers of one machine, where sending takes CPU time only."""


def alone(machine: Machine, memory_bytes: float, batch: int) -> Forecast:
    """The forecast for a single worker."""
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
    """Seconds of a step, and the fraction of the time on the wire that is hidden."""
    early, late = sent.early / link.rate, sent.late / link.rate
    latency = SYNC_MESSAGES * link.latency_seconds
    spent = _exchange_cpu_seconds(machine, sent, codec)
    step = (
        machine.touch + machine.forward + machine.backward + _update_seconds(machine, sent) + spent
    )
    if delay:
        exposed = max(0.0, early - machine.backward, early + late + latency - step)
    else:
        exposed = max(0.0, early - machine.backward) + late + latency
    return step + exposed, _hidden_share(exposed, early + late)


def periodic_seconds(
    machine: Machine, sent: Sent, codec: str, link: Link, overlap_steps: int = 0
) -> tuple[float, float]:
    """Mean seconds of a step, and the fraction of the time on the wire that is hidden."""
    merging = MERGING * sent.merged * machine.update_row
    spent = _exchange_cpu_seconds(machine, sent, codec)
    computing = machine.step + merging + spent
    wire = sent.up / link.rate
    exposed = max(0.0, wire - computing)
    if overlap_steps:
        exposed = max(exposed, wire - sent.turns * overlap_steps * computing)
    return computing + exposed, _hidden_share(exposed, wire)


def async_seconds(
    machine: Machine, sent: Sent, codec: str, link: Link, workers: int, servers: int = 1
) -> tuple[float, float]:
    """Seconds of a step of one worker, and the fraction of the time on the wire that is hidden."""
    spent = _message_cpu_seconds(machine, sent, codec)
    computing = machine.touch + machine.forward + machine.backward + spent
    up, awaited = sent.up / link.rate, sent.awaited / link.rate
    # A worker exchanges messages with all servers at once, over a link of its own.
    own_link = (up + awaited) * (1.0 - 1.0 / servers)
    stations = [up / servers, (_update_seconds(machine, sent) + spent) / servers, awaited / servers]
    step = queueing_seconds(computing + own_link + 2.0 * link.latency_seconds, stations, workers)
    step = max(step, workers * sent.down / (servers * link.rate))
    wire = (sent.up + sent.down) / link.rate
    return step, _hidden_share(step - computing, wire)


def queueing_seconds(thinking: float, stations: Sequence[float], customers: int) -> float:
    """The mean seconds of a customer's cycle in a closed queueing network.

    Args:
        thinking: think time: seconds per cycle outside the stations.
        stations: service time of each station, in seconds. A station serves one customer at a time.
        customers: number of customers.
    """
    queues = [0.0] * len(stations)
    cycle = thinking
    for number in range(1, customers + 1):
        stays = [seconds * (1.0 + queue) for seconds, queue in zip(stations, queues, strict=True)]
        cycle = thinking + sum(stays)
        queues = [number / cycle * stay for stay in stays]
    return cycle


def _update_seconds(machine: Machine, sent: Sent) -> float:
    """Seconds to update the merged rows of all workers (sync), or the rows of one worker."""
    return machine.update + max(0.0, sent.rows - machine.rows) * machine.update_row


def _hidden_share(exposed: float, wire: float) -> float:
    """The fraction of the time on the wire for which a step does not wait."""
    return max(0.0, 1.0 - exposed / wire) if wire else 1.0


def _exchange_cpu_seconds(machine: Machine, sent: Sent, codec: str) -> float:
    """CPU seconds that a worker spends on the exchange with other workers."""
    return machine.exchange_byte[codec] * (sent.up + sent.down) + machine.round * sent.rounds


def _message_cpu_seconds(machine: Machine, sent: Sent, codec: str) -> float:
    """CPU seconds that a worker or a server spends on the messages of a step.

    Each of them either encodes or decodes a value, so it spends half of `code_byte`.
    """
    is_large = max(sent.up, sent.down) > LARGE_BYTES
    transport_byte = machine.large_message_byte if is_large else machine.message_byte
    total_bytes = sent.up + sent.down
    coded = {**sent.other_codecs}
    coded[codec] = total_bytes - sum(coded.values())
    coding = sum(machine.code_byte[name] / 2 * num_bytes for name, num_bytes in coded.items())
    return coding + transport_byte * total_bytes
