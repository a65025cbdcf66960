"""Transformer or LSTM, and which loss for a Transformer at 8 k, 32 k and 50 k words?

Tokens/s of the Transformer with each loss, side by side, round by round; then the perplexity over
time of both models with the sampled loss, in equal seconds.

    python -m benchmarks.questions.transformer [--quick]
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.training import trained
from benchmarks.record.write import spread, table, write

VOCABULARIES = (8_000, 32_000, 50_000)
LOSSES = ("sampled", "full", "adaptive", "linear_cross_entropy")
MODELS = ("lstm", "transformer")
ROUNDS, ROUND_SECONDS, CURVE_SECONDS, POINTS = 3, 20.0, 600.0, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 k words, one round, short runs")
    add_corpus(parser)
    arguments = parser.parse_args()
    sizes = VOCABULARIES[:1] if arguments.quick else VOCABULARIES
    rounds, round_seconds, curve_seconds = ROUNDS, ROUND_SECONDS, CURVE_SECONDS
    if arguments.quick:
        rounds, round_seconds, curve_seconds = 1, 3.0, 6.0
    data = {size: data_folder(arguments, f"--vocab-size={size}") for size in sizes}

    def run(size: int, model: str, loss: str, seconds: float, every: float) -> dict[str, Any]:
        settings = {"model": {"kind": model, "width": 256, "layers": 1}}
        return trained(data[size], loss, seconds, every, settings)

    speeds: dict[int, dict[str, list[float]]] = {s: {loss: [] for loss in LOSSES} for s in sizes}
    for _ in range(rounds):
        for size in sizes:
            for loss in LOSSES:
                found = run(size, "transformer", loss, round_seconds, 2 * round_seconds)
                speeds[size][loss].append(found["tokens_per_second"])
    curves = {
        model: run(sizes[-1], model, "sampled", curve_seconds, curve_seconds / POINTS)["curve"]
        for model in MODELS
    }
    rates = [
        {
            "vocabulary": f"{size:,}",
            "loss": loss,
            "tokens/s": f"{median(found):,.0f}",
            "times full": spread([a / b for a, b in zip(found, speeds[size]["full"], strict=True)]),
        }
        for size in sizes
        for loss, found in speeds[size].items()
    ]
    points = [
        {
            "model": model,
            "seconds": f"{point['seconds']:,.0f}",
            "tokens": f"{point['tokens']:,}",
            "validation ppl": f"{point['ppl']:.1f}",
        }
        for model, curve in curves.items()
        for point in curve
    ]
    body = (
        "One thread, width 256, one layer, the settings of `thinwire train` but for what is named. "
        f"Tokens/s of the Transformer from {rounds} rounds side by side (median, least to most)."
        "\n\n"
        f"{table(rates)}\nPerplexity over time with the sampled loss and {sizes[-1]:,} words:\n\n"
        f"{table(points)}"
    )
    record = {"speeds": speeds, "curves": curves, "seed": 1, "quick": arguments.quick}
    write(record_name("transformer", arguments.corpus), "Transformer and LSTM", body, record)


if __name__ == "__main__":
    main()
