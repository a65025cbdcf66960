"""What would more workers and other links do than one machine can show? Predicted, not measured.

The arithmetic of one worker is measured on one core of this machine, what 8 to 256 workers touch is
counted in the corpus, and `thinwire.plan.forecast` says how long a step would take over each link.
For GPUs the measured times are scaled by the rate of the arithmetic. The novels, 67 k words, LSTM
of width 256, the defaults of `thinwire train`.

    python benchmarks/beyond.py [--data DATA] [--seconds S] [--quick]

W workers.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import get_args

import matplotlib
import numpy as np
import record
import torch
from record import novels, table, write

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.exchange.config import CodecName
from thinwire.language_model import LanguageModel
from thinwire.plan.counts import Counter, Sent
from thinwire.plan.forecast import (
    SYNC_MESSAGES,
    Link,
    async_seconds,
    periodic_seconds,
    sync_seconds,
)
from thinwire.plan.loopback import WIDENING
from thinwire.plan.machine import Machine, measure, parse_rate
from thinwire.plan.plan import TIE
from thinwire.report import figures
from thinwire.report.palette import LIGHT
from thinwire.train.device import set_up_device

SECONDS = 20.0
WORKERS = (8, 16, 32, 64, 128, 256)
PLOTTED = (8, 64, 256)
CODECS = get_args(CodecName)
RATES = ("10mbit", "100mbit", "1gbit", "10gbit", "25gbit", "100gbit")
# Where periodic begins is looked for among these: a megabit a second to a terabit.
BITS_PER_SECOND = np.logspace(6, 12, 241)
# Queues lengthen a step little by little: a server is saturated where a step takes twice as long as
# that of a worker with a server to itself.
SATURATED = 2.0
UTILISATION = 0.4
LATENCY_SECONDS = Link(1.0).latency_seconds

# An exchange and a codec.
Way = tuple[str, str]


@dataclass(frozen=True)
class Gpu:
    """A GPU by its published figures.

    Attributes:
        name: of the product.
        flop_per_second: peak, fp32 without tensor cores.
        bus_bytes_per_second: PCI Express, one way.
        source: of these figures.
        rates: of links, beside `RATES`.
        latency_seconds: for a message to arrive; assumed.
    """

    name: str
    flop_per_second: float
    bus_bytes_per_second: float
    source: str
    rates: tuple[str, ...] = ()
    latency_seconds: float = LATENCY_SECONDS


GPUS = (
    Gpu(
        "GTX 1080",
        8.9e12,
        15.75e9,
        "NVIDIA: 2,560 cores x 2 operations x 1.733 GHz (boost), fp32; PCIe 3.0 x16",
    ),
    Gpu(
        "H100",
        67e12,
        63e9,
        "NVIDIA's data sheet of the H100 SXM: fp32; PCIe 5.0 x16",
        ("400gbit",),
        1e-5,
    ),
)


@dataclass(frozen=True)
class Device:
    """What each worker, and each server, is; and the rates of links to predict for."""

    name: str
    machine: Machine
    rates: tuple[str, ...]
    latency_seconds: float = LATENCY_SECONDS

    def link(self, bytes_per_second: float) -> Link:
        """A link of this rate."""
        return Link(bytes_per_second, self.latency_seconds)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring")
    parser.add_argument("--quick", action="store_true", help="fewer workers, measured for 2 s")
    arguments = parser.parse_args()
    workers, seconds = (PLOTTED, 2.0) if arguments.quick else (WORKERS, arguments.seconds)
    corpus = Corpus.open(arguments.data or novels())
    config = RunConfig.from_dict({"run": {"threads": 1}})
    set_up_device(config)
    model = LanguageModel(
        config.model, config.loss, torch.from_numpy(corpus.counts_V), config.run.seed
    )
    core = measure(corpus, config, model, seconds)
    flop = flop_per_token(model, config)
    devices = [Device("this core", core, RATES)]
    devices += [
        Device(g.name, on_gpu(core, g, flop), RATES + g.rates, g.latency_seconds) for g in GPUS
    ]
    sent_by = {W: sent_by_way(corpus, config, model, W) for W in workers}
    predictions = [
        predict(device, sent_by[W], rate, W)
        for device in devices
        for W in workers
        for rate in device.rates
    ]
    servers = [servers_for(d, sent_by, rate) for d in devices for rate in d.rates]
    periodic_below = {
        d.name: {W: periodic_begins(d, sent_by[W], W) for W in workers} for d in devices
    }
    body = "\n".join(
        [
            about(core, flop, corpus, workers[-1]),
            *(matrix(device, workers, predictions) for device in devices),
            servers_table(servers, workers),
            periodic_table(periodic_below, workers),
            "![Predicted efficiency over the rate of the links](beyond.png)\n",
        ]
    )
    found = {
        "predicted": True,
        "measured": asdict(core),
        "flop_per_token": flop,
        "utilisation": UTILISATION,
        "gpus": [asdict(gpu) for gpu in GPUS],
        "predictions": [asdict(p) for p in predictions],
        "servers": [asdict(s) for s in servers],
        "periodic_below_bits_per_second": periodic_below,
        "seed": config.run.seed,
    }
    write("beyond", "Beyond this machine: predicted", body, found)
    draw(devices, sent_by, record.RESULTS / "beyond.png")


def flop_per_token(model: LanguageModel, config: RunConfig) -> float:
    """2 operations a multiply-add, forward once and backward twice: the body and the sample."""
    body = sum(block.numel() for block in model.blocks().values() if block.dim() == 2)
    return 3 * 2 * (body + config.loss.samples * config.model.width)


def on_gpu(core: Machine, gpu: Gpu, flop: float) -> Machine:
    """All times shorter by the ratio of the rates of arithmetic; what is sent crosses the bus.

    Encrypting messages stays the processor's.
    """
    rate = flop * core.tokens / (core.forward + core.backward)
    ratio = UTILISATION * gpu.flop_per_second / rate
    return Machine(
        core.touch / ratio,
        core.forward / ratio,
        core.backward / ratio,
        core.update / ratio,
        core.update_row / ratio,
        0.0,  # NCCL's rounds are latency alone
        {
            codec: seconds / ratio + 1.0 / WIDENING[codec] / gpu.bus_bytes_per_second
            for codec, seconds in core.exchange_byte.items()
        },
        {codec: seconds / ratio for codec, seconds in core.code_byte.items()},
        core.message_byte + 1.0 / gpu.bus_bytes_per_second,
        core.large_message_byte + 1.0 / gpu.bus_bytes_per_second,
        core.tokens,
    )


def sent_by_way(
    corpus: Corpus, config: RunConfig, model: LanguageModel, workers: int
) -> dict[Way, Sent]:
    """What a step sends, in the order in which the plan prefers what is equally fast."""
    counter = Counter(corpus, config, model)
    # All workers together touch what one worker with all their streams touches.
    streams = replace(config.data, batch=workers * config.data.batch)
    rows = Counter(corpus, replace(config, data=streams), model).local_rows()
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


def periodic_begins(device: Device, sent_by: Mapping[Way, Sent], workers: int) -> float:
    """The rate, in bit/s, below which periodic is faster by more than a tie."""
    machine = device.machine

    def is_faster(bits_per_second: float) -> bool:
        link = device.link(bits_per_second / 8)
        periodic = least(machine, "periodic", sent_by, link, workers)
        return periodic < (1.0 - TIE) * least(machine, "sync", sent_by, link, workers)

    return max((float(rate) for rate in BITS_PER_SECOND if is_faster(rate)), default=0.0)


def about(core: Machine, flop: float, corpus: Corpus, workers: int) -> str:
    """What the predictions rest on, and what they leave out."""
    rate = flop * core.tokens / (core.forward + core.backward)
    num_steps = len(corpus.ids("train")) / (workers * core.tokens)
    latencies = f"{1e3 * LATENCY_SECONDS:g} ms, the default of `thinwire plan`" + "".join(
        f", and between {gpu.name}s {1e3 * gpu.latency_seconds:g} ms, which is assumed"
        for gpu in GPUS
        if gpu.latency_seconds != LATENCY_SECONDS
    )
    gpus = "; ".join(f"{g.name} {g.flop_per_second / 1e12:.3g} TFLOP/s ({g.source})" for g in GPUS)
    return (
        "**Everything here is predicted but for this paragraph.** Measured: one core takes "
        f"{1e3 * core.step:.0f} ms for a step of {core.tokens:,.0f} tokens, "
        f"{core.tokens / core.step:,.0f} tokens/s, of which forward and backward run at "
        f"{rate / 1e9:.0f} GFLOP/s. Counted: the rows that the workers touch.\n\n"
        f"The model is that of `thinwire plan`: a link for each worker, the same rate up and down, "
        f"one asynchronous server behind a link of its own. Efficiency is the share of W times one "
        "worker that exchanges nothing; asynchronous workers leave the update to the server, so "
        "theirs can be above 1. Best is what changes the numbers least among those within "
        f"{TIE:.0%} of the fastest.\n\n"
        f"GPUs are predicted from published peaks, of which {UTILISATION:.0%} is assumed to be "
        "reached: all measured times, those of updates and codecs too, are divided by the ratio of "
        f"the arithmetic, and what travels crosses PCIe. {gpus}. A GPU would not reach that with a "
        "model and batches as small as these; the longer its steps really are, the less the wire "
        "weighs.\n\n"
        f"A message takes {latencies}; a synchronous step waits for {SYNC_MESSAGES} in a row, "
        f"whatever W. Left out: that each goes to {workers - 1} others, piece by piece; what a "
        "switch does when all send at once; workers of unequal speed. And "
        f"{workers} workers of such batches pass over this corpus in {num_steps:.0f} steps: this "
        "says how fast, not how well.\n"
    )


def matrix(device: Device, workers: Sequence[int], predictions: Sequence[Prediction]) -> str:
    """The best exchange of a device for each number of workers and each link."""
    by = {(p.workers, p.link): p for p in predictions if p.device == device.name}
    rows = [
        {"workers": f"{W}"}
        | {rate_name(parse_rate(rate) * 8): cell(by[W, rate]) for rate in device.rates}
        for W in workers
    ]
    alone = device.machine.tokens / device.machine.step
    kind = "measured" if device.name == "this core" else "predicted"
    return (
        f"## {device.name[0].upper()}{device.name[1:]}\n\nPredicted: best exchange, tokens/s, "
        f"efficiency; one worker alone: {figures.count(alone)} tokens/s ({kind}).\n\n{table(rows)}"
    )


def cell(prediction: Prediction) -> str:
    p = prediction
    rate = figures.count(p.tokens_per_second)
    return f"{p.exchange} {p.codec}, {rate}, {p.efficiency:#.2g}"


def servers_table(servers: Sequence[Servers], workers: Sequence[int]) -> str:
    rows = [
        {
            "device": s.device,
            "link": rate_name(parse_rate(s.link) * 8),
            "codec": s.codec,
            "one server is saturated from": f"{s.saturated_at} workers",
            "by its": s.limit,
            f"servers for {', '.join(map(str, workers))}": ", ".join(map(str, s.needed.values())),
            f"efficiency of {workers[-1]} then": f"{s.efficiency:#.2g}",
        }
        for s in servers
    ]
    return (
        "## The asynchronous server\n\nPredicted, with the codec with which a server answers most "
        "steps a second: the number of workers from which on queues make a step take twice as long "
        "as that of a worker with a server to itself, and how many servers keep it below that. A "
        "worker that waits for its own link gains "
        f"nothing from more of them.\n\n{table(rows)}"
    )


def periodic_table(below: Mapping[str, Mapping[int, float]], workers: Sequence[int]) -> str:
    rows = [
        {"workers": f"{W}"} | {device: rate_name(rates[W]) for device, rates in below.items()}
        for W in workers
    ]
    return (
        "## Where sync ends and periodic begins\n\nPredicted: the rate of the links below which "
        f"periodic is faster than sync by more than {TIE:.0%}, each with its fastest codec.\n\n"
        f"{table(rows)}"
    )


def rate_name(bits_per_second: float) -> str:
    """100 Mbit/s, 2.5 Gbit/s."""
    if bits_per_second in (0.0, BITS_PER_SECOND[-1]):
        return "at no rate" if bits_per_second == 0.0 else "at any rate"
    unit, name = (1e9, "Gbit/s") if bits_per_second >= 1e9 else (1e6, "Mbit/s")
    return f"{bits_per_second / unit:.3g} {name}"


def draw(
    devices: Sequence[Device], sent_by: Mapping[int, Mapping[Way, Sent]], target: Path
) -> None:
    """Efficiency over the rate of the links: a row of charts for each number of workers."""
    size = {"figsize": (11, 9), "dpi": 150}
    figure, grid = plt.subplots(
        len(PLOTTED), len(devices), sharex=True, sharey=True, squeeze=False, **size
    )
    for row, W in zip(grid, PLOTTED, strict=True):
        for axes, device in zip(row, devices, strict=True):
            draw_one(axes, device, sent_by[W], W)
            axes.set_title(f"{device.name}, {W} workers", fontsize=10)
        row[0].set_ylabel("efficiency, predicted")
    for axes in grid[-1]:
        axes.set_xlabel("link of each worker, bit/s")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(target)
    plt.close(figure)
    print(target)


def draw_one(axes: Axes, device: Device, sent_by: Mapping[Way, Sent], workers: int) -> None:
    rates = BITS_PER_SECOND[(BITS_PER_SECOND >= 1e7) & (BITS_PER_SECOND <= 4e11)]
    curves = {
        "sync": ("sync", 1),
        "periodic": ("periodic", 1),
        "async, one server": ("async", 1),
        "async, a server for each worker": ("async", workers),
    }
    for (name, (exchange, servers)), colour in zip(curves.items(), LIGHT, strict=False):
        steps = [
            least(device.machine, exchange, sent_by, device.link(rate / 8), workers, servers)
            for rate in rates
        ]
        shares = [device.machine.step / step for step in steps]
        dashes = "--" if servers > 1 else "-"
        axes.plot(rates, shares, dashes, color=colour, linewidth=1.8, label=name)
    axes.set(xscale="log", yscale="log", ylim=(1e-4, 2.0))
    ticks = {1e7: "10 M", 1e8: "100 M", 1e9: "1 G", 1e10: "10 G", 1e11: "100 G"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
