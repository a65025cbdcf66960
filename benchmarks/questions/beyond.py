"""What would more workers and other links do than one machine can show? Predicted, not measured.

The arithmetic of one worker is measured on one core of this machine, what 8 to 256 workers touch is
counted in the corpus, and `thinwire.plan.forecast` says how long a step would take over each link.
For GPUs the measured times are scaled by the rate of the arithmetic. A corpus, LSTM
of width 256, the defaults of `thinwire train`.

    python -m benchmarks.questions.beyond [--data DATA] [--seconds S] [--quick]

W workers.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.predicted.chart import draw
from benchmarks.predicted.devices import (
    GPUS,
    LATENCY_SECONDS,
    UTILISATION,
    Device,
    flop_per_token,
    on_gpu,
)
from benchmarks.predicted.steps import (
    BITS_PER_SECOND,
    Prediction,
    Servers,
    Stretch,
    predict,
    sent_by_way,
    servers_for,
    where_periodic_is_faster,
)
from benchmarks.record.write import RESULTS, table, write
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.language_model import LanguageModel
from thinwire.plan.forecast import SYNC_MESSAGES
from thinwire.plan.machine import Machine, measure, parse_rate
from thinwire.plan.plan import TIE
from thinwire.report import figures
from thinwire.runs.device import set_up_device

SECONDS = 20.0
WORKERS = (8, 16, 32, 64, 128, 256)
PLOTTED = (8, 64, 256)
RATES = ("10mbit", "100mbit", "1gbit", "10gbit", "25gbit", "100gbit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring")
    parser.add_argument("--quick", action="store_true", help="fewer workers, measured for 2 s")
    arguments = parser.parse_args()
    workers, seconds = (PLOTTED, 2.0) if arguments.quick else (WORKERS, arguments.seconds)
    corpus = Corpus.open(data_folder(arguments))
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
    faster = {
        d.name: {W: where_periodic_is_faster(d, sent_by[W], W) for W in workers} for d in devices
    }
    name = record_name("beyond", arguments.corpus)
    body = "\n".join(
        [
            about(core, flop, corpus, workers[-1]),
            *(matrix(device, workers, predictions) for device in devices),
            servers_table(servers, workers),
            periodic_table(faster, workers),
            f"![Predicted efficiency over the rate of the links]({name}.png)\n",
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
        "periodic_is_faster_bits_per_second": faster,
        "seed": config.run.seed,
    }
    write(name, "Beyond this machine: predicted", body, found)
    draw(devices, {W: sent_by[W] for W in PLOTTED}, RESULTS / f"{name}.png")


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
        "reached: all measured times, those of updates and exchanges too, are divided by the ratio "
        f"of the arithmetic, and what travels crosses PCIe. {gpus}. A GPU would not reach that "
        "with a model and batches as small as these; the longer its steps really are, the less the "
        "wire weighs.\n\n"
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


def periodic_table(
    faster: Mapping[str, Mapping[int, Sequence[Stretch]]], workers: Sequence[int]
) -> str:
    rows = [
        {"workers": f"{W}"}
        | {device: ", ".join(map(stretch_name, by[W])) or "no" for device, by in faster.items()}
        for W in workers
    ]
    return (
        "## Where sync ends and periodic begins\n\nPredicted: the rates of the links at which "
        f"periodic is faster than sync by more than {TIE:.0%}, each with its fastest codec. "
        "Periodic gathers all of its rows, the more the more workers there are; sync sums those of "
        f"the sample, which takes the same for many as for few.\n\n{table(rows)}"
    )


def stretch_name(stretch: Stretch) -> str:
    """Rates from one to another; the last ones that were tried are no bounds."""
    slowest, fastest = stretch
    if fastest == BITS_PER_SECOND[-1]:
        return "all" if slowest == BITS_PER_SECOND[0] else f"from {rate_name(slowest)}"
    to = rate_name(fastest)
    return f"to {to}" if slowest == BITS_PER_SECOND[0] else f"{rate_name(slowest)} to {to}"


def rate_name(bits_per_second: float) -> str:
    """100 Mbit/s, 2.5 Gbit/s."""
    unit, name = (1e9, "Gbit/s") if bits_per_second >= 1e9 else (1e6, "Mbit/s")
    return f"{bits_per_second / unit:.3g} {name}"


if __name__ == "__main__":
    main()
