"""How much does a token teach when several workers learn together?

Runs of equal tokens, one after another, on this machine as it is; nothing is timed. Perplexity of
the final state, and from the curve of one worker (ln ppl straight over ln tokens) how many of its
tokens teach as much: the part of the run's own is what `thinwire.plan.learning` puts in powers.

    python -m benchmarks.questions.learning [--tokens N] [--seeds N ...] [--quick]

What is measured already is not measured again, but with `--again`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.runs import thinwire
from benchmarks.record.kept import Kept
from benchmarks.record.write import spread, table, write
from thinwire.plan.learning import learning
from thinwire.runs.metrics import read_metrics

TOKENS, QUICK_TOKENS = 2_500_000, 60_000
EVAL_TOKENS = 92_603
WORKERS = 4
ONE = "one worker"
HALF = "one worker, half the tokens"
# Sequences a worker's step; local steps, fragments, row steps and overlap of a periodic exchange.
PERIODIC = (
    (16, (4, 4, 4, 0)),
    (16, (16, 4, 16, 0)),
    (16, (4, 4, 16, 0)),
    (16, (4, 1, 16, 0)),
    (16, (4, 1, 16, 1)),
    (32, (4, 1, 16, 1)),
    (64, (4, 1, 16, 1)),
    (64, (4, 4, 4, 0)),
)
SYNC = (32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--quick", action="store_true", help="two cases, few tokens")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    arguments = parser.parse_args()
    name, tokens, cases = record_name("learning", arguments.corpus), arguments.tokens, all_cases()
    if arguments.quick:
        name, tokens, cases = "learning-quick", QUICK_TOKENS, dict(list(cases.items())[:3])
    data = data_folder(arguments)
    kept = Kept(name, again=arguments.again)
    for seed in arguments.seeds:
        for case, flags in cases.items():
            budget = tokens // 2 if case == HALF else tokens
            kept.measure(f"{case}/{seed}", partial(measure, data, flags, budget, seed))
    rows = [row(case, kept.found, arguments.seeds, tokens) for case in cases]
    seeds = ", ".join(map(str, arguments.seeds))
    body = (
        f"{data.name}, {tokens:,} tokens in all (half for one row), settings of `thinwire train`\n"
        f"but for what is named, {WORKERS} workers; perplexity on {EVAL_TOKENS:,} validation\n"
        f"tokens. Seeds {seeds}.\n\n{table(rows)}\nMeasured at {kept.origins()}.\n"
    )
    write(name, "How much a token teaches", body, {"measurements": kept.found})


def all_cases() -> dict[str, list[str]]:
    """Flags by the name of a case."""
    cases: dict[str, list[str]] = {ONE: [], HALF: []}
    together = ["--workers", str(WORKERS)]
    for batch, turns in PERIODIC:
        flags = [*together, "--exchange", "periodic", "--data.batch", str(batch)]
        names = ("local_steps", "fragments", "row_steps", "overlap_steps")
        for name, value in zip(names, turns, strict=True):
            flags += [f"--exchange.{name}", str(value)]
        cases[f"periodic of {batch}: {' '.join(map(str, turns))}"] = flags
    for batch in SYNC:
        cases[f"sync of {batch}"] = [*together, "--exchange", "sync", "--data.batch", str(batch)]
    return cases


def measure(data: Path, flags: Sequence[str], tokens: int, seed: int) -> dict[str, Any]:
    """Train, and take the perplexity of the end."""
    every = ["--eval.every_tokens", str(10**12), "--eval.tokens", str(EVAL_TOKENS)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        budget = ["--tokens", tokens, "--seed", seed, "--threads", 1]
        subprocess.run(thinwire("train", data, "--out", run, *budget, *every, *flags), check=True)
        lines = read_metrics(run)
    return {
        "ppl": [line for line in lines if line["event"] == "valid"][-1]["ppl"],
        "tokens": [line for line in lines if line["event"] == "train"][-1]["tokens"],
    }


def row(
    case: str, found: Mapping[str, dict[str, Any]], seeds: Sequence[int], tokens: int
) -> dict[str, object]:
    """Its perplexity, what its tokens teach, and what the plan takes that for."""
    runs = [found[f"{case}/{seed}"] for seed in seeds]
    teach = []
    for seed, run in zip(seeds, runs, strict=True):
        one, half = found[f"{ONE}/{seed}"], found[f"{HALF}/{seed}"]
        slope = log(half["ppl"] / one["ppl"]) / log(one["tokens"] / half["tokens"])
        teach.append(exp(log(one["ppl"] / run["ppl"]) / slope) * one["tokens"] / run["tokens"])
    return {
        "case": case,
        "perplexity": spread([run["ppl"] for run in runs], 1),
        "a token teaches": f"{median(teach):.2f}",
        "the plan's": "" if case == HALF else f"{planned(case):.2f}",
    }


def planned(case: str) -> float:
    """What the plan takes a token of this case to teach."""
    if case == ONE:
        return 1.0
    kind, _, rest = case.split(" ", 2)
    batch, _, turns = rest.partition(": ")
    local_steps, _, row_steps, _ = map(int, turns.split()) if turns else (1, 1, 1, 0)
    return learning(kind, WORKERS, int(batch), local_steps, row_steps)


if __name__ == "__main__":
    main()
