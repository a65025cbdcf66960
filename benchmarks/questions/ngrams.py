"""Do rows for hashed n-grams pay at equal time?

Runs with and without them of the same seconds of training, in turns, one thread; perplexity of the
final state on validation text, and how many tokens each has read. A table of `model.ngram_rows`
rows costs memory in any case: what it is, is said beside.

    python -m benchmarks.questions.ngrams [--seconds S] [--seeds N ...] [--model KIND] [--quick]
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.runs import thinwire
from benchmarks.record.write import spread, table, write
from thinwire.runs.metrics import read_metrics

SECONDS, QUICK_SECONDS = 120.0, 4.0
EVAL_TOKENS, QUICK_EVAL_TOKENS = 92_603, 5_000
WITHOUT = "none"
# Largest order and rows.
SIZES = ((2, 1 << 18), (3, 1 << 18), (3, 1 << 20), (4, 1 << 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N")
    add_corpus(parser)
    parser.add_argument("--model", default="lstm", help="model.kind")
    parser.add_argument("--quick", action="store_true", help="two cases, a few seconds each")
    arguments = parser.parse_args()
    name = record_name("ngrams", arguments.corpus)
    sizes: Sequence[tuple[int, int]] = SIZES
    seconds, eval_tokens = arguments.seconds, EVAL_TOKENS
    if arguments.quick:
        name, seconds, eval_tokens = "ngrams-quick", QUICK_SECONDS, QUICK_EVAL_TOKENS
        sizes = ((3, 1 << 14),)
    cases: dict[str, list[str]] = {WITHOUT: []}
    for largest, num_rows in sizes:
        flags = ["--model.ngrams", str(largest), "--model.ngram_rows", str(num_rows)]
        cases[f"orders to {largest}, {num_rows:,} rows"] = flags
    data = data_folder(arguments)
    kind = ["--model.kind", arguments.model]
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    for seed in arguments.seeds:
        for case, flags in cases.items():
            found[case].append(measure(data, [*kind, *flags], seconds, seed, eval_tokens))
    seeds = ", ".join(map(str, arguments.seeds))
    body = (
        f"{data.name}, {arguments.model}, {seconds:g} s of training each, one thread, settings\n"
        f"of `thinwire train` but for what is named; perplexity on {eval_tokens:,} validation\n"
        f"tokens. Seeds {seeds}; ratios to the run without n-grams of the same seed.\n\n"
        f"{table([row(case, found) for case in cases])}\n"
    )
    record = {"found": found, "seeds": arguments.seeds, "seconds": seconds}
    write(name, "Rows for hashed n-grams", body, record)


def measure(
    data: Path, flags: Sequence[str], seconds: float, seed: int, eval_tokens: int
) -> dict[str, Any]:
    """Train for so many seconds: perplexity of the end, tokens read, numbers in all parameters."""
    budget = ["--seconds", seconds, "--seed", seed, "--threads", 1]
    once = ["--eval.every_seconds", 10 * seconds, "--eval.tokens", eval_tokens]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        saving = ["--checkpoint.every_seconds", 10 * seconds]
        command = thinwire("train", data, "--out", run, *budget, *once, *saving, *flags)
        subprocess.run(command, check=True)
        lines = {line["event"]: line for line in read_metrics(run)}
    return {
        "ppl": lines["valid"]["ppl"],
        "tokens": lines["end"]["tokens"],
        "parameters": lines["start"]["parameters"],
    }


def row(case: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, object]:
    """Its perplexity and tokens beside those without n-grams, and the memory of its parameters."""
    pairs = list(zip(found[case], found[WITHOUT], strict=True))
    return {
        "n-grams": case,
        "perplexity": spread([run["ppl"] for run, _ in pairs], 1),
        "of that without": spread([run["ppl"] / other["ppl"] for run, other in pairs], 3),
        "tokens": spread([run["tokens"] for run, _ in pairs], 0),
        "tokens, times": spread([run["tokens"] / other["tokens"] for run, other in pairs]),
        "parameters, MB": f"{4e-6 * pairs[0][0]['parameters']:,.0f}",
    }


if __name__ == "__main__":
    main()
