"""How long a step takes with each exchange, and which one is best.

W workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count, groupby
from typing import get_args

import numpy as np

from benchmarks.predicted.devices import Device
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.exchange.config import CodecName
from thinwire.language_model import LanguageModel
from thinwire.plan.forecast import Link, async_seconds, periodic_seconds, sync_seconds
from thinwire.plan.machine import Machine, parse_rate
from thinwire.plan.plan import TIE
from thinwire.plan.traffic import Sent, TrafficCounter

CODECS = get_args(CodecName)
# Where periodic is faster is looked for among these: a megabit a second to a terabit.
BITS_PER_SECOND = np.logspace(6, 12, 241)
# Queues lengthen a step little by little: a server is saturated where a step takes twice as long as
# that of a worker with a server to itself.
SATURATED = 2.0

# An exchange and a codec.
Way = tuple[str, str]
# Rates from one to another, in bit/s.
Stretch = tuple[float, float]


@dataclass(frozen=True)
class Prediction:
    """The best exchange for some workers over a link."""

    device: str
    workers: int
    link: str
    exchange: str
    codec: str
    step_seconds: float
    tokens_per_second: float
    efficiency: float
    """Share of W times one worker without any exchange."""


@dataclass(frozen=True)
class Servers:
    """How far one asynchronous server goes over a link.

    Attributes:
        device: of workers and servers.
        link: by its rate.
        codec: with which a server answers most steps a second.
        saturated_at: the number of workers from which on it is saturated.
        limit: what of it does, its processor or its link.
        needed: servers that are not saturated, by the number of workers.
        efficiency: with so many servers; share of W times one worker.
    """

    device: str
    link: str
    codec: str
    saturated_at: int
    limit: str
    needed: Mapping[int, int]
    efficiency: float


def sent_by_way(
    corpus: Corpus, config: RunConfig, model: LanguageModel, workers: int
) -> dict[Way, Sent]:
    """What a step sends, in the order in which the plan prefers what is equally fast."""
    counter = TrafficCounter(corpus, config, model)
    # All workers together touch what one worker with all their streams touches.
    streams = replace(config.data, batch=workers * config.data.batch)
    rows = TrafficCounter(corpus, replace(config, data=streams), model).local_rows()
    synchronous = {
        ("sync", codec): replace(counter.sync(workers, codec), rows=rows) for codec in CODECS
    }
    periodic = {("periodic", codec): counter.periodic(workers, codec) for codec in CODECS}
    served = {("async", codec): counter.asynchronous(workers, codec) for codec in CODECS}
    return synchronous | periodic | served


def step_seconds(
    machine: Machine, way: Way, sent: Sent, link: Link, workers: int, servers: int = 1
) -> float:
    """A step of one of the workers."""
    exchange, codec = way
    if exchange == "sync":
        return sync_seconds(machine, sent, codec, link)[0]
    if exchange == "periodic":
        return periodic_seconds(machine, sent, codec, link)[0]
    return async_seconds(machine, sent, codec, link, workers, servers)[0]


def least(
    machine: Machine,
    exchange: str,
    sent_by: Mapping[Way, Sent],
    link: Link,
    workers: int,
    servers: int = 1,
) -> float:
    """A step with the codec for which it is shortest."""
    return min(
        step_seconds(machine, way, sent, link, workers, servers)
        for way, sent in sent_by.items()
        if way[0] == exchange
    )


def predict(device: Device, sent_by: Mapping[Way, Sent], rate: str, workers: int) -> Prediction:
    """The first way that is nearly as fast as the fastest, as `thinwire plan` chooses it."""
    machine, link = device.machine, device.link(parse_rate(rate))
    steps = {way: step_seconds(machine, way, sent, link, workers) for way, sent in sent_by.items()}
    fastest = min(steps.values())
    way = next(way for way, step in steps.items() if fastest >= (1.0 - TIE) * step)
    tokens_per_second = workers * machine.tokens / steps[way]
    efficiency = machine.step / steps[way]
    return Prediction(device.name, workers, rate, *way, steps[way], tokens_per_second, efficiency)


def servers_for(device: Device, sent_by: Mapping[int, Mapping[Way, Sent]], rate: str) -> Servers:
    """A worker with a server to itself is what more servers cannot improve on."""
    machine, link, most = device.machine, device.link(parse_rate(rate)), max(sent_by)

    def step(codec: str, workers: int, servers: int = 1) -> float:
        way = ("async", codec)
        return step_seconds(machine, way, sent_by[most][way], link, workers, servers)

    codec = min(CODECS, key=lambda codec: step(codec, most))
    longest = SATURATED * step(codec, 1)
    saturated_at = next(W for W in count(2) if step(codec, W) > longest)
    sent = sent_by[most]["async", codec]
    by_link = (
        saturated_at * max(sent.up, sent.down) / link.rate >= step(codec, saturated_at) / SATURATED
    )
    needed = {W: next(M for M in count(1) if step(codec, W, M) <= longest) for W in sent_by}
    return Servers(
        device.name,
        rate,
        codec,
        saturated_at,
        "link" if by_link else "processor",
        needed,
        machine.step / step(codec, most, needed[most]),
    )


def where_periodic_is_faster(
    device: Device, sent_by: Mapping[Way, Sent], workers: int
) -> list[Stretch]:
    """Where it is faster than sync by more than a tie."""
    machine = device.machine

    def is_faster(bits_per_second: float) -> bool:
        link = device.link(bits_per_second / 8)
        periodic = least(machine, "periodic", sent_by, link, workers)
        return periodic < (1.0 - TIE) * least(machine, "sync", sent_by, link, workers)

    stretches = groupby(BITS_PER_SECOND.tolist(), is_faster)
    rates = [list(stretch) for faster, stretch in stretches if faster]
    return [(stretch[0], stretch[-1]) for stretch in rates]
