"""Does an exchange cost quality? Four workers against one with the same batch in all.

Equal tokens, the same seeds; all workers are processes of this machine. Vocabulary of 10 k words,
LSTM of width 128, sampled softmax; exact perplexity of 100,000 tokens of the validation text. Each
exchange has a bound on what it may lose; of those that lose more, a picture shows how they come to
it, by snapshots scored on 20,000 tokens.

    python -m benchmarks.questions.exchange_quality [--quick] [--seeds N] [--only NAME ...]

What is measured already is not measured again, but with `--again`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.race import snapshots
from benchmarks.record.kept import Kept
from benchmarks.record.write import RESULTS, spread, table, write
from thinwire.report.palette import LIGHT
from thinwire.runs.metrics import read_metrics

TOKENS = 1_000_000
EVAL_TOKENS = 100_000
BATCH = 64
WORKERS = 4
SNAPSHOT_SECONDS = 5.0
# The curves' first tokens are left out: there perplexity falls too steeply to be compared.
CURVE_FROM = 200_000


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        settings: of the run.
        bound: on its perplexity over one worker's.
    """

    settings: Mapping[str, Any]
    bound: float


Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
ONE = "one worker"
SYNC, PERIODIC, ASYNC = ({"exchange": kind} for kind in ("sync", "periodic", "async"))
LATE = {"exchange.delay": 1}
QUARTER = SYNC | {"exchange.hidden_fraction": 0.25}
INT4 = {"codec": "int4"}
CASES = {
    ONE: Case({"workers": 1}, 1.0),
    "sync fp32": Case(SYNC, 1.0005),
    "sync bf16": Case(SYNC | {"codec": "bf16"}, 1.005),
    "sync int8": Case(SYNC | {"codec": "int8"}, 1.005),
    "sync int4": Case(SYNC | INT4, 1.005),
    "sync fp32, a step late": Case(SYNC | LATE, 1.02),
    "sync int4, a step late": Case(SYNC | LATE | INT4, 1.02),
    "sync, 1/4 of the hidden rows, feedback": Case(QUARTER, 1.01),
    "sync, 1/4 of the hidden rows, largest": Case(
        QUARTER | {"exchange.hidden_kind": "largest"}, 1.01
    ),
    "sync, 1/4 of the hidden rows, unbiased": Case(
        QUARTER | {"exchange.hidden_kind": "unbiased"}, 1.01
    ),
    "periodic int4, 4 steps": Case(PERIODIC | INT4, 1.03),
    "periodic int4, 8 steps": Case(PERIODIC | INT4 | {"exchange.local_steps": 8}, 1.03),
    "periodic int4, 16 steps": Case(PERIODIC | INT4 | {"exchange.local_steps": 16}, 1.03),
    "async fp32": Case(ASYNC, 1.02),
    "async bf16": Case(ASYNC | {"codec": "bf16"}, 1.02),
    "async int8": Case(ASYNC | {"codec": "int8"}, 1.02),
    "async int4": Case(ASYNC | INT4, 1.02),
    "async fp32, 16 workers": Case(ASYNC | {"workers": 16}, 1.05),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the tokens")
    add_corpus(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of cases")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    arguments = parser.parse_args()
    data = data_folder(arguments, "--vocab-size=10000")
    name, seeds, tokens = record_name("exchange-quality", arguments.corpus), arguments.seeds, TOKENS
    only = arguments.only
    if arguments.quick:
        name, seeds, tokens, only = "exchange-quality-quick", 1, TOKENS // 10, ["sync int8"]
    cases = [c for c in CASES if not only or c in only or c == ONE]
    kept = Kept(name, again=arguments.again)
    for seed in range(1, seeds + 1):
        for case in cases:
            kept.measure(
                key(case, seed), partial(measure, data, CASES[case].settings, seed, tokens)
            )
    measured = [case for case in CASES if key(case, 1) in kept.found]
    missed = [c for c in measured if median(over_one(c, kept.found)) > CASES[c].bound]
    drawn = [case for case in missed if curves(case, kept.found)]
    body = (
        f"{tokens:,} tokens, {BATCH} sequences of 35 tokens a step in all: four workers of "
        f"{BATCH // 4}, sixteen of {BATCH // 16}, or one of {BATCH}. Median (least to most) of the "
        f"seeds; `bound`: what the exchange may come to, for it to count as without loss.\n\n"
        f"{table(row(case, kept.found) for case in measured)}\n"
    )
    if drawn:
        draw(drawn, kept.found, RESULTS / f"{name}.png")
        body += f"Those above their bound over the tokens: [curves]({name}.png).\n\n"
    body += f"Measured at {kept.origins()}.\n"
    write(name, "Quality of the exchanges at equal tokens", body, {"measurements": kept.found})


def key(case: str, seed: int) -> str:
    """Under which a measurement is kept."""
    return f"{case}/{seed}"


def seeds_of(case: str, found: Mapping[str, dict[str, Any]]) -> list[int]:
    """Those that were measured, from 1 on without a gap."""
    return list(takewhile(lambda seed: key(case, seed) in found, count(1)))


def over_one(case: str, found: Mapping[str, dict[str, Any]]) -> list[float]:
    """Perplexity over one worker's, seed by seed."""
    seeds = seeds_of(case, found)
    return [found[key(case, seed)]["ppl"] / found[key(ONE, seed)]["ppl"] for seed in seeds]


def row(case: str, found: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """What a case came to beside one worker."""
    over, bound = over_one(case, found), CASES[case].bound
    ppl = [found[key(case, seed)]["ppl"] for seed in seeds_of(case, found)]
    return {
        "exchange": case,
        "seeds": str(len(ppl)),
        "validation ppl": spread(ppl),
        "over one worker, seed by seed": spread(over, 4),
        "bound": "" if case == ONE else f"{bound:g}" + (" (above)" * (median(over) > bound)),
    }


def curves(case: str, found: Mapping[str, dict[str, Any]]) -> list[Curve]:
    """Tokens and perplexity over one worker's at as many tokens, for each seed with snapshots."""
    curves = []
    for seed in seeds_of(case, found):
        points, base = (found[key(c, seed)].get("points") for c in (case, ONE))
        if points and base:
            tokens, ppl = np.array([(p[0], p[2]) for p in points if p[0] >= CURVE_FROM]).T
            base_tokens, base_ppl = np.array([(p[0], p[2]) for p in base]).T
            between = np.interp(np.log(tokens), np.log(base_tokens), np.log(base_ppl))
            curves.append((tokens, ppl / np.exp(between)))
    return curves


def draw(cases: Sequence[str], found: Mapping[str, dict[str, Any]], file: Path) -> None:
    """A line a seed; dashed: the bound."""
    figure = Figure(figsize=(8, 1.2 + 2.4 * len(cases)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(cases), 1, sharex=True, squeeze=False)
    for axes, case in zip(grid[:, 0], cases, strict=True):
        for (tokens, over), colour in zip(curves(case, found), LIGHT, strict=False):
            axes.plot(tokens / 1e6, over, marker="o", markersize=3, color=colour)
        axes.axhline(1.0, color="#777777", linewidth=0.8)
        axes.axhline(CASES[case].bound, color="#777777", linewidth=0.8, linestyle="--")
        axes.set_title(f"{case} (dashed: its bound)", fontsize=10)
        axes.set_ylabel("perplexity over\none worker's", fontsize=9)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel("million training tokens; a line a seed")
    figure.savefig(file)


def measure(data: Path, case: Mapping[str, Any], seed: int, tokens: int) -> dict[str, Any]:
    """One run of a fixed number of tokens."""
    settings = {
        "workers": WORKERS,
        "tokens": tokens,
        "threads": 1,
        "seed": seed,
        "model.width": 128,
        "data.batch": BATCH // case.get("workers", WORKERS),
        "loss.samples": 1500,
        "eval.tokens": EVAL_TOKENS,
        "eval.every_seconds": 1e9,
        "checkpoint.every_seconds": SNAPSHOT_SECONDS,
        "checkpoint.keep": 1000,
        **case,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "thinwire", "train", str(data), "--out", str(run)]
        command += [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        subprocess.run(command, check=True)
        lines, points = read_metrics(run), snapshots(run)
    valid = [line for line in lines if line["event"] == "valid"][-1]
    return {
        "ppl": valid["ppl"],
        "seconds": lines[-1]["seconds"],
        "staleness": lines[-1].get("staleness"),
        "points": points,
    }


if __name__ == "__main__":
    main()
