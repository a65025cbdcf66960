"""Two threads, BPE of 50,257: how long do 32 M tokens take, and what is learnt meanwhile?

The setting in which people train small language models on the two threads that they are given: a
Transformer over the vocabulary of GPT-2, in which the full softmax takes most of the time. Rates of
the sampled loss, of thinwire's full softmax and of PyTorch's, side by side, round by round; then
the curve of the sampled loss and that of PyTorch's, in equal seconds. A published run of this kind
took 1.2 hours for 32 M tokens, 86% of them in the output layer (FlashLM v3, on other data).

    python -m benchmarks.questions.bpe [--quick]
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.training import Sections, trained
from benchmarks.record.write import spread, table, write

VOCAB_SIZE, QUICK_VOCAB_SIZE, TOKENS = 50_257, 4_000, 32_000_000
LOSSES = ("sampled", "full", "stock")
CURVES = ("sampled", "stock")
ROUNDS, ROUND_SECONDS, CURVE_SECONDS, POINTS = 3, 20.0, 600.0, 6
SETTINGS: Sections = {"run": {"threads": 2}, "model": {"kind": "transformer", "layers": 2}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--quick", action="store_true", help="a small vocabulary, a few seconds")
    arguments = parser.parse_args()
    vocab_size, rounds, round_seconds, curve_seconds = (
        *(VOCAB_SIZE, ROUNDS),
        *(ROUND_SECONDS, CURVE_SECONDS),
    )
    if arguments.quick:
        vocab_size, rounds, round_seconds, curve_seconds = QUICK_VOCAB_SIZE, 1, 3.0, 6.0
    data = data_folder(arguments, "--tokenizer=bpe", f"--vocab-size={vocab_size}")
    rates: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    for _ in range(rounds):
        for loss in LOSSES:
            found = trained(data, loss, round_seconds, 2 * round_seconds, SETTINGS)
            rates[loss].append(found["tokens_per_second"])
    every = curve_seconds / POINTS
    curves = {loss: trained(data, loss, curve_seconds, every, SETTINGS)["curve"] for loss in CURVES}
    rows = [row(loss, rates) for loss in LOSSES]
    points: list[dict[str, Any]] = [
        {
            "loss": loss,
            "seconds": f"{point['seconds']:,.0f}",
            "M tokens": f"{point['tokens'] / 1e6:.2f}",
            "validation ppl": f"{point['ppl']:.1f}",
        }
        for loss, curve in curves.items()
        for point in curve
    ]
    body = (
        f"Transformer of 2 layers and width 256, BPE of {vocab_size:,}, two threads, the settings "
        f"of `thinwire train` besides; rates from {rounds} rounds side by side (median, least to "
        f"most). `stock` is PyTorch's full softmax.\n\n{table(rows)}\n{table(points)}"
    )
    name = record_name("bpe", arguments.corpus)
    write(name, "BPE of 50,257 on two threads", body, {"rates": rates, "curves": curves, "seed": 1})


def row(loss: str, rates: dict[str, list[float]]) -> dict[str, str]:
    """The rates of a loss."""
    times = [a / b for a, b in zip(rates[loss], rates["stock"], strict=True)]
    return {
        "loss": loss,
        "tokens/s": spread(rates[loss], 0),
        "times stock": spread(times, 1),
        f"hours for {TOKENS // 1_000_000} M tokens": f"{TOKENS / median(rates[loss]) / 3600:.2f}",
    }


if __name__ == "__main__":
    main()
