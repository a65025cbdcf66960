"""Does sampling cost quality? Full and sampled softmax at equal tokens, same seeds and batches.

Vocabulary of 10 k words and width 128, where the full softmax is affordable.

    python -m benchmarks.questions.quality [--quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.child import child
from benchmarks.record.write import spread, table, write

SEEDS = (1, 2, 3)
TOKENS, QUICK_TOKENS = 1_200_000, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--quick", action="store_true", help="one seed, few tokens")
    parser.add_argument("--child", nargs=4, metavar=("DATA", "LOSS", "SEED", "TOKENS"))
    arguments = parser.parse_args()
    if arguments.child:
        data, loss, seed, tokens = arguments.child
        print(json.dumps(measure(Path(data), loss, int(seed), int(tokens))))
        return
    data = data_folder(arguments, "--vocab-size=10000")
    seeds, tokens = ((1,), QUICK_TOKENS) if arguments.quick else (SEEDS, TOKENS)
    found = {
        loss: [child("quality", "--child", data, loss, seed, tokens) for seed in seeds]
        for loss in ("full", "sampled")
    }
    pairs = list(zip(found["sampled"], found["full"], strict=True))
    rows = [
        {
            "loss": loss,
            "validation ppl": spread([run["ppl"] for run in runs]),
            "tokens/s": spread([run["tokens_per_second"] for run in runs], 0),
        }
        for loss, runs in found.items()
    ]
    ppl_ratios = [a["ppl"] / b["ppl"] for a, b in pairs]
    speed_ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs]
    body = (
        f"{tokens:,} tokens, {len(seeds)} seeds, vocabulary 10 k, LSTM of width 128, one thread; "
        "the whole validation text scored with the exact softmax.\n\n"
        + table(rows)
        + f"\nSampled over full, seed by seed: perplexity {spread(ppl_ratios, 4)}, mean "
        f"{mean(ppl_ratios):.4f}; tokens/s {spread(speed_ratios, 1)}.\n"
    )
    write(
        record_name("quality", arguments.corpus),
        "Quality at equal tokens",
        body,
        {"runs": found, "seeds": seeds, "tokens": tokens},
    )


def measure(data: Path, loss: str, seed: int, tokens: int) -> dict[str, Any]:
    """One run of a fixed number of tokens."""
    from thinwire.config import RunConfig
    from thinwire.runs.metrics import read_metrics
    from thinwire.training.loop import train

    config = RunConfig.from_dict(
        {
            "run": {"tokens": tokens, "threads": 1, "seed": seed},
            "model": {"width": 128, "layers": 1, "dropout": 0.0},
            "data": {"batch": 16, "length": 35},
            "loss": {"kind": loss, "samples": 1500},
            "eval": {"tokens": 0, "every_tokens": tokens},
            "checkpoint": {"every_seconds": 1e9},
        }
    )
    out = Path(tempfile.mkdtemp())
    try:
        train(data, out / "run", config)
        lines = read_metrics(out / "run")
    finally:
        shutil.rmtree(out)
    end = lines[-1]
    valid = [line for line in lines if line["event"] == "valid"][-1]
    return {"ppl": valid["ppl"], "tokens_per_second": end["tokens"] / end["seconds"]}


if __name__ == "__main__":
    main()
