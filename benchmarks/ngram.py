"""How soon does a network beat the 5-gram, and how far below does it get in half an hour?

`thinwire train` with its defaults on all cores; the same on a second corpus as a check that the
defaults were not made for the first. The perplexity of the 5-gram with modified Kneser-Ney
smoothing on the same tokens of the novels, unknown words as an ordinary word, comes with that
corpus: validation 118.9, test 135.3.

    python benchmarks/ngram.py [--seconds 1800] [--corpus novels|poetry]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from record import CACHE, novels, prepared, table, write

FIVE_GRAM = {"novels": {"valid": 118.9, "test": 135.3}, "poetry": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--corpus", choices=list(FIVE_GRAM), default="novels")
    arguments = parser.parse_args()
    data = novels() if arguments.corpus == "novels" else poetry()
    run = CACHE / f"ngram-{arguments.corpus}"
    shutil.rmtree(run, ignore_errors=True)
    options = ["--seconds", str(arguments.seconds), "--eval.tokens", "0"]
    options += ["--eval.every_seconds", str(min(120.0, arguments.seconds / 6))]
    thinwire("train", data, "--out", run, *options)
    exact = {
        split: json.loads(thinwire("eval", run, "--split", split, "--json"))
        for split in ("valid", "test")
    }
    from thinwire.train.metrics import read_metrics

    curve = [line for line in read_metrics(run) if line["event"] == "valid"]
    rows = [
        {
            "seconds": f"{point['seconds']:,.0f}",
            "M tokens": f"{point['tokens'] / 1e6:.1f}",
            "validation ppl": f"{point['ppl']:.1f}",
        }
        for point in curve
    ]
    known = FIVE_GRAM[arguments.corpus]
    final = ", ".join(
        f"{split} {found['ppl']:.1f}" + (f" (5-gram: {known[split]})" if known else "")
        for split, found in exact.items()
    )
    body = (
        f"Defaults, all cores, {arguments.seconds:,.0f} seconds of training, the whole validation "
        f"text scored exactly.\n\n{table(rows)}\nFinal perplexity, all tokens: {final}.\n"
    )
    record = {"curve": curve, "final": exact, "five_gram": known, "seed": 1}
    write(f"ngram-{arguments.corpus}", f"Against the 5-gram: {arguments.corpus}", body, record)


def poetry() -> Path:
    """Gutenberg poetry from the package index, as a data folder."""
    text = CACHE / "poetry-text"
    if not text.exists():
        thinwire("fetch", "poetry", "--out", text)
    return prepared("poetry", next(text.glob("*.txt")))


def thinwire(*arguments: object) -> str:
    """One command of thinwire; its standard output."""
    command = [sys.executable, "-m", "thinwire", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
