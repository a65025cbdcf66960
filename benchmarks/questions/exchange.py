"""What does an exchange cost? Two workers of one core each, over links of a given rate.

Every share is of what *the same two processes reach side by side without any exchange*, measured in
turns in the same run. The bytes that the meters counted are set beside those of the documented
formula. Then asynchronous training as in the paper's baseline, all parameters pulled and pushed and
a full softmax, against rows and a sampled one. The workers live in network namespaces of their own
with `tc tbf` on their links, which needs root. A corpus, LSTM of width 256, defaults
but for what the tables name.

    python -m benchmarks.questions.exchange [--rounds N] [--seconds S] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.cluster import Cluster
from benchmarks.lab.formula import formula_bytes
from benchmarks.lab.runs import CpuWatch, start_alone, start_async, start_together, wait
from benchmarks.record.write import spread, table, write

WORKERS = 2


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes:
        name: of the row.
        rate: of the links.
        flags: of the run.
        slower: it runs for so many times the seconds, because its steps are long.
    """

    name: str
    rate: str | None
    flags: str = ""
    slower: float = 1.0

    @property
    def is_async(self) -> bool:
        """Whether a server holds the parameters."""
        return "async" in self.flags


SECONDS, QUICK_SECONDS, QUICK_CASE = 15.0, 4.0, "sync int8"
ALONE = Case("no exchange", None)
ALONE_256 = Case("no exchange, batch 256", None, "--data.batch 256", 3.0)
PERIODIC = "--exchange periodic --codec int4"
LATE = "--exchange sync --exchange.delay 1"
CASES = (
    ALONE,
    Case("sync fp32", "1gbit", "--exchange sync"),
    Case("sync fp32, a step late", "1gbit", LATE),
    Case("sync bf16", "100mbit", "--exchange sync --codec bf16"),
    Case("sync bf16, a step late", "100mbit", f"{LATE} --codec bf16"),
    Case("sync int8", "100mbit", "--exchange sync --codec int8"),
    Case("sync int8, a step late", "100mbit", f"{LATE} --codec int8"),
    Case("sync int4, a step late", "20mbit", f"{LATE} --codec int4"),
    Case("periodic int4, 4 steps", "20mbit", PERIODIC),
    Case("async fp32", "1gbit", "--exchange async"),
    Case("async bf16", "1gbit", "--exchange async --codec bf16"),
    Case("async int8", "1gbit", "--exchange async --codec int8"),
    ALONE_256,
    Case("sync fp32, batch 256", "1gbit", "--exchange sync --data.batch 256", 3.0),
    Case("sync fp32, a step late, batch 256", "1gbit", f"{LATE} --data.batch 256", 3.0),
    Case(
        "sync int8, a step late, batch 256", "100mbit", f"{LATE} --codec int8 --data.batch 256", 3.0
    ),
)
DENSE = "--exchange async --select everything"
AGAINST_DENSE = (
    Case("everything, full softmax", "1gbit", f"{DENSE} --loss.kind full", 8.0),
    Case("everything, sampled softmax", "1gbit", DENSE, 4.0),
    Case("rows, sampled softmax", "1gbit", "--exchange async"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of cases")
    parser.add_argument("--quick", action="store_true", help="one case, four seconds")
    arguments = parser.parse_args()
    rounds, seconds, only = arguments.rounds, SECONDS, arguments.only
    if arguments.quick:
        rounds, seconds, only = 1, QUICK_SECONDS, [QUICK_CASE]
    data = data_folder(arguments)
    cases = [c for c in (*CASES, *AGAINST_DENSE) if not only or c.name in only]
    # Nothing is worth anything without what it is a share of.
    cases = [case for case in (ALONE, ALONE_256) if case not in cases] + cases
    found: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            found[case.name].append(measure(case, data, case.slower * seconds))
            print(case.name, found[case.name][-1], file=sys.stderr, flush=True)
    body = (
        "Two workers, one thread and one core each; shares from "
        f"{rounds} rounds side by side (median, least to most). `hidden`: the part of "
        "the wire's time in which a worker computed. `of the formula`: bytes counted over bytes "
        "expected, exactly 1 where a step's bytes follow from the rows it touches. Of async the "
        "formula counts every touched row once, pulled and pushed; rows that have not changed are "
        "not sent, and those that change while they are pulled ahead are sent twice.\n\n"
        f"{table([row(case, found) for case in cases if case in CASES])}"
    )
    dense = [case for case in cases if case in AGAINST_DENSE]
    if dense:
        body += (
            "\nAsynchronous, against all parameters in every pull and push:\n\n"
            f"{table([dense_row(case, dense[0], found) for case in dense])}"
        )
    write(
        record_name("exchange", arguments.corpus),
        "The cost of an exchange",
        body,
        {"runs": found, "seed": 1},
    )


def row(case: Case, found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """What a case cost beside the same without an exchange."""
    runs = found[case.name]
    base = found[(ALONE_256 if "batch 256" in case.name else ALONE).name]
    shares = ratios(runs, base)
    return {
        "exchange": case.name,
        "link": case.rate or "none",
        "tokens/s": f"{median(run['tokens_per_second'] for run in runs):,.0f}",
        "share of no exchange": spread(shares),
        "MB a step a worker": f"{median(run['step_bytes'] for run in runs) / 1e6:.3f}",
        "of dense": f"1/{median(run['of_dense'] for run in runs):.0f}",
        "of the formula": f"{median(run['of_formula'] for run in runs):.4g}",
        "wait, of the time": f"{median(run['waiting'] for run in runs):.2f}",
        "hidden": f"{median(run['hidden'] for run in runs):.2f}",
        "link measured, Mbit/s": f"{median(run['link'] for run in runs) / 1e6:,.0f}",
        "server, share of a core": f"{median(run['server_share'] for run in runs):.2f}",
    }


def dense_row(case: Case, base: Case, found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """A way of asynchronous training beside the densest one."""
    runs = found[case.name]
    return {
        "pulled and pushed, loss": case.name,
        "link": str(case.rate),
        "tokens/s": f"{median(run['tokens_per_second'] for run in runs):,.0f}",
        f"times {base.name}": spread(ratios(runs, found[base.name]), 1),
        "MB a step a worker, both ways": f"{median(run['step_bytes'] for run in runs) / 1e6:.1f}",
    }


def ratios(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> list[float]:
    """Of the rates, round by round."""
    rate = "tokens_per_second"
    return [run[rate] / other[rate] for run, other in zip(runs, base, strict=True)]


def measure(case: Case, data: Path, seconds: float) -> dict[str, Any]:
    """One run of a case."""
    folder = Path(tempfile.mkdtemp())
    flags = [*settings(seconds), *case.flags.split()]
    try:
        with Cluster(WORKERS + case.is_async, case.rate, cores=range(WORKERS)) as cluster:
            link = cluster.measured_rate() if case.rate else 0.0
            if case.rate is None:
                processes = start_alone(cluster, WORKERS, data, folder, flags)
            elif case.is_async:
                processes = start_async(cluster, WORKERS, data, folder, flags)
            else:
                processes = start_together(cluster, WORKERS, data, folder, flags)
            watch = CpuWatch(processes, folder)
            num_runs = WORKERS if case.rate is None else 1
            wait(processes, folder, seconds + 300.0, watch.look, num_runs)
        # A step is one of all workers together, but of each its own where nobody waits.
        runs = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
        found = [read(run, data, case) for run in runs]
    finally:
        shutil.rmtree(folder)
    total = {"link": link, "server_share": watch.shares()[0] if case.is_async else 0.0}
    for key in found[0]:
        total[key] = sum(part[key] for part in found)
    return total


def settings(seconds: float) -> list[str]:
    """Flags of every run: one thread, and nothing but training."""
    flags = {"seconds": seconds, "threads": 1, "eval.every_seconds": 1e9, "eval.tokens": 500}
    flags |= {"checkpoint.every_seconds": 1e9, "metrics.every_seconds": 1.0}
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


def read(run: Path, data: Path, case: Case) -> dict[str, float]:
    """What the metrics of a run say; its first fifth, in which caches fill, does not count."""
    from thinwire.runs.metrics import read_metrics

    lines = read_metrics(run)
    # The last one also counts what came after the last step.
    train = [line for line in lines if line["event"] == "train"][:-1]
    steady = train[len(train) // 5 :]
    first, last = steady[0], steady[-1]
    seconds = last["seconds"] - first["seconds"]
    steps = last["step"] - first["step"]
    found = {"tokens_per_second": (last["tokens"] - first["tokens"]) / seconds}
    names = ("step_bytes", "of_dense", "of_formula", "waiting", "hidden")
    if "bytes_sent" not in last:
        return found | dict.fromkeys(names, 0.0)
    gained = {
        name: last[name] - first[name]
        for name in ("bytes_sent", "bytes_dense", "exchange_seconds", "wire_seconds")
        if name in last
    }
    sent, waited = gained["bytes_sent"], gained["exchange_seconds"]
    if case.is_async:
        expected, wire = async_bytes(run, data) * steps, waited
    else:
        expected = formula_bytes(run, data, WORKERS, first["step"], last["step"])
        wire = gained["wire_seconds"]
    values = (
        sent / steps / (1 if case.is_async else WORKERS),
        gained["bytes_dense"] / sent,
        sent / expected,
        waited / seconds,
        max(0.0, 1.0 - waited / wire) if wire else 0.0,
    )
    return found | dict(zip(names, values, strict=True))


def async_bytes(run: Path, data: Path) -> float:
    """What an asynchronous worker pulls and pushes in a step when each touched row comes once."""
    import torch

    from thinwire.data.corpus import Corpus
    from thinwire.language_model import LanguageModel
    from thinwire.plan.traffic import TrafficCounter
    from thinwire.runs.folder import RunFolder

    config, corpus = RunFolder.open(run).config, Corpus.open(data)
    counts_V = torch.from_numpy(corpus.counts_V)
    model = LanguageModel(config.model, config.loss, counts_V, config.run.seed, initialise=False)
    exchange = config.exchange
    counter = TrafficCounter(corpus, config, model)
    everything = exchange.select == "everything"
    sent = counter.asynchronous(WORKERS, exchange.codec, everything=everything)
    return sent.up + sent.down


if __name__ == "__main__":
    main()
