"""How soon does a network beat the 5-gram, and how far below does it get?

`thinwire train` with its defaults on all cores, for two minutes and for longer; the same on a
second corpus as a check that the defaults were not made for the first. The perplexity of the 5-gram
with modified Kneser-Ney smoothing on the same tokens of the novels, unknown words as an ordinary
word, comes with that corpus: validation 118.9, test 135.3.

    python -m benchmarks.questions.ngram [--corpus novels|poetry] [--seconds S ...]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.corpora import CACHE, CORPORA, corpus, record_name
from benchmarks.lab.child import thinwire
from benchmarks.record.write import table, write

FIVE_GRAM: dict[str, dict[str, float]] = {"novels": {"valid": 118.9, "test": 135.3}, "poetry": {}}
# Poetry has 173 k words, so an evaluation takes its time.
EVALUATIONS = {"novels": 15, "poetry": 4}
# Of runs whose way is not shown.
FEW_EVALUATIONS = 2
EXACT = {"novels": ("valid", "test"), "poetry": ("valid",)}
SPLITS = {"validation": "valid", "test": "test"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", choices=CORPORA, default=CORPORA[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[120.0, 1800.0])
    parser.add_argument("--quick", action="store_true", help="four seconds")
    arguments = parser.parse_args()
    data = corpus(arguments.corpus)
    *shorter, longest = [4.0] if arguments.quick else sorted(arguments.seconds)
    runs = [measure(data, arguments.corpus, seconds, FEW_EVALUATIONS) for seconds in shorter]
    runs.append(measure(data, arguments.corpus, longest, EVALUATIONS[arguments.corpus]))
    known = FIVE_GRAM[arguments.corpus]
    splits = [split for split, name in SPLITS.items() if name in EXACT[arguments.corpus]]
    rows = [
        {
            "trained for": f"{run['seconds']:,.0f} s",
            "M tokens": f"{run['tokens'] / 1e6:.1f}",
        }
        | {f"{split} ppl": f"{run[SPLITS[split]]:.1f}" for split in splits}
        for run in runs
    ]
    if known:
        five_gram = {"trained for": "5-gram, modified Kneser-Ney", "M tokens": "16.5"}
        rows.append(
            five_gram | {f"{split} ppl": str(known[name]) for split, name in SPLITS.items()}
        )
    curve = [
        {
            "seconds": f"{p['seconds']:,.0f}",
            "M tokens": f"{p['tokens'] / 1e6:.1f}",
            "ppl": f"{p['ppl']:.1f}",
        }
        for p in runs[-1]["curve"]
    ]
    body = (
        "Defaults, all cores. The rates fall with the budget, so each row is a run of its own; its "
        "exact perplexity is over all tokens of the split, unknown words included.\n\n"
        f"{table(rows)}\nThe way of the longest run, on {runs[-1]['curve'][0]['tokens_scored']:,} "
        f"tokens of the validation text:\n\n{table(curve)}"
    )
    record = {"runs": runs, "five_gram": known, "seed": 1}
    write(
        record_name("ngram", arguments.corpus),
        f"Against the 5-gram: {arguments.corpus}",
        body,
        record,
    )


def measure(data: Path, corpus: str, seconds: float, evaluations: int) -> dict[str, Any]:
    """Train with the defaults for so long, then score both held-out splits whole."""
    run = CACHE / f"ngram-{corpus}-{seconds:.0f}"
    shutil.rmtree(run, ignore_errors=True)
    options = ["--seconds", seconds, "--eval.every_seconds", seconds / evaluations]
    thinwire("train", data, "--out", run, *options)
    from thinwire.runs.metrics import read_metrics

    lines = read_metrics(run)
    exact = {
        split: json.loads(thinwire("eval", run, "--split", split, "--json"))["ppl"]
        for split in EXACT[corpus]
    }
    curve = [line for line in lines if line["event"] == "valid"]
    return {"seconds": lines[-1]["seconds"], "tokens": lines[-1]["tokens"], "curve": curve} | exact


if __name__ == "__main__":
    main()
