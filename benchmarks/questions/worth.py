"""What are several machines worth: how much sooner do they reach a perplexity than one?

One emulated device trains for several budgets of time, each a run of its own with the schedule over
its budget; so do N devices together, joined by a link. Both take the settings that thinwire chooses
itself; the user says how many workers there are, no more. With p the exact perplexity that N
devices have after T seconds of training,

    worth = seconds that one device needs to reach p / T

read off the curve of the one device (ln ppl straight over ln seconds between two budgets). A
perplexity that the one device does not reach within its longest budget gives a lower bound.

    python -m benchmarks.questions.worth [--corpus poetry|novels] [--seeds N ...] [--links LINK ...]
        [--workers N ...] [--exchange NAME ...] [--quick]

Needs root, for the devices. What is measured already is not measured again, but with `--again`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.cluster import Cluster
from benchmarks.lab.runs import Processes, start_together, thinwire, wait
from benchmarks.record.kept import Kept
from benchmarks.record.write import spread, table, write
from thinwire.data.corpus import Corpus
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.evaluation import evaluate
from thinwire.runs.folder import RunFolder
from thinwire.runs.metrics import read_metrics

ONE_SECONDS = (50.0, 100.0, 200.0, 400.0)
"""Budgets of the one device; N devices have the first two."""
SHARES = {1: 0.4, 2: 0.4, 4: 0.4, 8: 0.2}
"""Of one core, for each of so many devices."""
EVAL_TOKENS = 92_603
"""Of the validation text, spread over it, that the final states are scored on."""
TIMEOUT_SECONDS = 1800.0
COMMON = (
    *("--threads", "1", "--checkpoint.every_seconds", "1e9", "--eval.every_seconds", "1e9"),
    *("--eval.tokens", "500"),
)
Found = Mapping[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    parser.add_argument("--links", nargs="+", default=["300mbit", "1gbit", "20mbit"])
    parser.add_argument("--workers", nargs="+", type=int, default=[4], choices=[2, 4, 8])
    parser.add_argument(
        "--exchange", nargs="+", default=["auto"], help="names, with more flags after a comma"
    )
    parser.add_argument("--quick", action="store_true", help="two devices, one link, seconds")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    arguments = parser.parse_args()
    budgets: tuple[float, ...] = ONE_SECONDS
    workers, links = arguments.workers, arguments.links
    seeds, exchanges = arguments.seeds, arguments.exchange
    name = record_name("worth", arguments.corpus)
    if arguments.quick:
        name, budgets, workers, links, seeds = "worth-quick", (4.0, 8.0), [2], links[:1], [1]
    data = data_folder(arguments)
    kept = Kept(name, again=arguments.again)
    for seed in seeds:
        for share in sorted({SHARES[W] for W in workers}, reverse=True):
            one = partial(measure_one, data, share, budgets, seed)
            kept.measure(f"one/{share}/{seed}", one)
        for W in workers:
            for link in links:
                for exchange in exchanges:
                    for seconds in budgets[:2]:
                        several = partial(measure_several, data, W, link, exchange, seconds, seed)
                        kept.measure(f"{W}/{link}/{exchange}/{seconds:g}/{seed}", several)
    rows = [
        row(kept.found, W, link, exchange, seconds, seeds)
        for W in workers
        for link in links
        for exchange in exchanges
        for seconds in budgets[:2]
    ]
    curves = [
        {"devices": 1, "of a core": share, "after": f"{seconds:g} s"}
        | figures([one_of(kept.found, share, seed, seconds) for seed in seeds])
        for share in sorted({SHARES[W] for W in workers}, reverse=True)
        for seconds in budgets
    ]
    body = (
        f"The corpus is {arguments.corpus}; one thread a device; settings are thinwire's own for so"
        " many workers.\nExact perplexity of the final states on "
        f"{EVAL_TOKENS:,} validation tokens; medians, least and most of the seeds "
        f"{', '.join(map(str, seeds))}.\n\n{table(curves)}\n{table(rows)}\n"
        f"Measured at {kept.origins()}.\n"
    )
    write(
        name,
        f"What several machines are worth ({arguments.corpus})",
        body,
        {"measurements": kept.found},
    )


def one_of(found: Found, share: float, seed: int, seconds: float) -> Mapping[str, float]:
    """The one device's run with this budget."""
    runs = found[f"one/{share}/{seed}"]["runs"]
    return next(run for run in runs if run["budget"] == seconds)


def row(
    found: Found, workers: int, link: str, exchange: str, seconds: float, seeds: Sequence[int]
) -> dict[str, object]:
    """What so many devices are worth after so many seconds."""
    runs = [found[f"{workers}/{link}/{exchange}/{seconds:g}/{seed}"] for seed in seeds]
    worths, bounded = [], False
    for seed, run in zip(seeds, runs, strict=True):
        one = found[f"one/{SHARES[workers]}/{seed}"]["runs"]
        needed, beyond = seconds_to(one, run["ppl"])
        worths.append(needed / run["seconds"])
        bounded = bounded or beyond
    return {
        "devices": workers,
        "of a core": SHARES[workers],
        "link": link,
        "exchange": exchange,
        "chosen": ", ".join(dict.fromkeys(run["chosen"] for run in runs)),
        "after": f"{seconds:g} s",
        **figures(runs),
        "worth": ("at least " if bounded else "") + spread(worths),
    }


def figures(runs: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Tokens and perplexity."""
    return {
        "M tokens": f"{median(run['tokens'] for run in runs) / 1e6:.2f}",
        "perplexity": spread([run["ppl"] for run in runs], 1),
    }


def seconds_to(one: Sequence[Mapping[str, float]], ppl: float) -> tuple[float, bool]:
    """In which the one device reaches a perplexity, and whether it would take longer than it had.

    Before its first budget the line of the first two goes on.
    """
    points = sorted((run["seconds"], run["ppl"]) for run in one)
    if ppl < points[-1][1]:
        return points[-1][0], True
    after = next(i for i, (_, reached) in enumerate(points) if reached <= ppl)
    (s0, p0), (s1, p1) = points[max(0, after - 1)], points[max(1, after)]
    part = log(p0 / ppl) / log(p0 / p1)
    return exp(log(s0) + part * log(s1 / s0)), False


def measure_one(data: Path, share: float, budgets: Sequence[float], seed: int) -> dict[str, Any]:
    """One device for each budget; they run beside one another, and know nothing of each other."""
    folder = Path(tempfile.mkdtemp())
    try:
        with Cluster(len(budgets), None, share) as cluster:
            processes: Processes = []
            for device, seconds in enumerate(budgets):
                out = folder / f"run{device}"
                flags = [*COMMON, "--seconds", seconds, "--seed", seed]
                command = thinwire("train", data, "--out", out, *flags)
                processes.append(cluster.start(device, command, log=folder / f"{device}.log"))
            wait(processes, folder, TIMEOUT_SECONDS)
        runs = [final(folder / f"run{i}") | {"budget": s} for i, s in enumerate(budgets)]
    finally:
        shutil.rmtree(folder)
    return {"runs": runs}


def measure_several(
    data: Path, workers: int, link: str, exchange: str, seconds: float, seed: int
) -> dict[str, Any]:
    """So many devices, joined by links of this rate; what they chose, and came to."""
    folder = Path(tempfile.mkdtemp())
    kind, *more = exchange.split(",")
    flags = [*COMMON, "--seconds", str(seconds), "--seed", str(seed), "--exchange", kind, *more]
    try:
        with Cluster(workers, link, SHARES[workers]) as cluster:
            measured = cluster.measured_rate()
            processes = start_together(cluster, workers, data, folder, flags)
            wait(processes, folder, TIMEOUT_SECONDS, num_runs=1)
        found = final(folder / "run")
    finally:
        shutil.rmtree(folder)
    return {**found, "link_bits_per_second": measured}


def final(run: Path) -> dict[str, Any]:
    """A run's last state: its time, its tokens, its exact perplexity, and its settings."""
    folder, checkpoints = RunFolder.open(run), Checkpoints(run)
    last = [line for line in read_metrics(run) if line["event"] == "train"][-1]
    found = evaluate(
        folder.load_model(checkpoints.load(checkpoints.steps[-1])),
        Corpus.open(folder.data).ids("valid"),
        eos_id=folder.eos_id,
        unk_id=folder.unk_id,
        data=folder.config.data,
        max_tokens=EVAL_TOKENS,
    )
    exchange, batch = folder.config.exchange, folder.config.data.batch
    chosen = f"{exchange.kind} {exchange.codec} of {batch}"
    if exchange.kind == "periodic":
        chosen += f" every {exchange.local_steps}"
    return {
        "seconds": last["seconds"],
        "tokens": last["tokens"],
        "ppl": found.ppl,
        "chosen": chosen,
        "bytes_sent": last.get("bytes_sent", 0),
        "waiting": last.get("exchange_seconds", 0.0) / last["seconds"],
    }


if __name__ == "__main__":
    main()
