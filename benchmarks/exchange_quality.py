"""Does an exchange cost quality? Four workers against one with the same batch in all.

Equal tokens, the same seeds; all workers are processes of this machine. Vocabulary of 10 k words,
LSTM of width 128, sampled softmax; exact perplexity of 100,000 tokens of the validation text.

    python benchmarks/exchange_quality.py [--quick] [--seeds N] [--only NAME ...]

What is measured already is not measured again, but with `--again`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from lab.race import Kept
from record import novels, spread, table, write

TOKENS = 1_000_000
EVAL_TOKENS = 100_000
BATCH = 64
WORKERS = 4
ONE = "one worker"
# What each row of the table sets.
SYNC, PERIODIC, ASYNC = ({"exchange": kind} for kind in ("sync", "periodic", "async"))
LATE = {"exchange.delay": 1}
QUARTER = SYNC | {"exchange.hidden_fraction": 0.25}
CASES: dict[str, dict[str, Any]] = {
    ONE: {"workers": 1},
    "sync fp32": SYNC,
    "sync bf16": SYNC | {"codec": "bf16"},
    "sync int8": SYNC | {"codec": "int8"},
    "sync int4": SYNC | {"codec": "int4"},
    "sync fp32, a step late": SYNC | LATE,
    "sync int4, a step late": SYNC | LATE | {"codec": "int4"},
    "sync, 1/4 of the hidden rows, feedback": QUARTER,
    "sync, 1/4 of the hidden rows, largest": QUARTER | {"exchange.hidden_kind": "largest"},
    "sync, 1/4 of the hidden rows, unbiased": QUARTER | {"exchange.hidden_kind": "unbiased"},
    "periodic int4, 4 steps": PERIODIC | {"codec": "int4", "exchange.local_steps": 4},
    "periodic int8, 16 steps": PERIODIC | {"codec": "int8", "exchange.local_steps": 16},
    "async fp32": ASYNC,
    "async int8": ASYNC | {"codec": "int8"},
    "async fp32, 16 workers": ASYNC | {"workers": 16},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the tokens")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of cases")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    arguments = parser.parse_args()
    data = novels("--vocab-size=10000")
    seeds, tokens = (1, TOKENS // 10) if arguments.quick else (arguments.seeds, TOKENS)
    cases = [c for c in CASES if not arguments.only or c in arguments.only or c == ONE]
    name = "exchange-quality-quick" if arguments.quick else "exchange-quality"
    kept = Kept(name, again=arguments.again)
    for seed in range(1, seeds + 1):
        for case in cases:
            kept.measure(key(case, seed), partial(measure, data, CASES[case], seed, tokens))
    rows = table(row(case, kept.found) for case in CASES if key(case, 1) in kept.found)
    body = (
        f"{tokens:,} tokens, {BATCH} sequences of 35 tokens a step in all: four workers of "
        f"{BATCH // 4}, sixteen of {BATCH // 16}, or one of {BATCH}. Median (least to most) of the "
        f"seeds.\n\n{rows}\n"
        f"Measured at {kept.commits()}.\n"
    )
    write(name, "Quality of the exchanges at equal tokens", body, {"measurements": kept.found})


def key(case: str, seed: int) -> str:
    """Under which a measurement is kept."""
    return f"{case}/{seed}"


def row(case: str, found: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """What a case came to beside one worker, seed by seed."""
    seeds = list(takewhile(lambda seed: key(case, seed) in found, count(1)))
    ppl = [found[key(case, seed)]["ppl"] for seed in seeds]
    over = [found[key(case, seed)]["ppl"] / found[key(ONE, seed)]["ppl"] for seed in seeds]
    return {
        "exchange": case,
        "seeds": str(len(seeds)),
        "validation ppl": spread(ppl),
        "over one worker, seed by seed": spread(over, 4),
    }


def measure(data: Path, case: dict[str, Any], seed: int, tokens: int) -> dict[str, Any]:
    """One run of a fixed number of tokens."""
    from thinwire.train.metrics import read_metrics

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
        "checkpoint.every_seconds": 1e9,
    } | case
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "thinwire", "train", str(data), "--out", str(run)]
        command += [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        subprocess.run(command, check=True)
        lines = read_metrics(run)
    valid = [line for line in lines if line["event"] == "valid"][-1]
    return {"ppl": valid["ppl"], "seconds": lines[-1]["seconds"]} | {
        "staleness": lines[-1].get("staleness")
    }


if __name__ == "__main__":
    main()
