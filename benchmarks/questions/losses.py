"""Every loss on one corpus with a large vocabulary: speed, memory, perplexity over time.

One thread, LSTM of width 256, everything but the loss the same. `stock` is what PyTorch users
write: `F.cross_entropy(F.linear(hidden, weight, bias), target)`.

    python -m benchmarks.questions.losses [--data DATA] [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.training import trained
from benchmarks.record.write import spread, table, write

LOSSES = ("stock", "linear_cross_entropy", "full", "adaptive", "nce", "sampled")
QUICK_LOSSES = ("stock", "sampled")
ROUNDS = 3
SPEED_SECONDS = 8.0
CURVE_SECONDS = {"stock": 1200.0, "sampled": 60.0}
OTHER_CURVE_SECONDS = 40.0
POINTS = 10
MODEL = {"model": {"width": 256, "layers": 1, "dropout": 0.0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--quick", action="store_true", help="two losses, a second each")
    parser.add_argument("--stock-seconds", type=float, default=CURVE_SECONDS["stock"])
    arguments = parser.parse_args()
    data = data_folder(arguments)

    losses: Sequence[str] = LOSSES
    rounds, seconds, points = ROUNDS, SPEED_SECONDS, POINTS
    curve_seconds = CURVE_SECONDS | {"stock": arguments.stock_seconds}
    if arguments.quick:
        losses, rounds, seconds, points = QUICK_LOSSES, 1, 1.0, 2
        curve_seconds = dict.fromkeys(losses, 1.0)
    speeds: dict[str, list[float]] = {loss: [] for loss in losses}
    memory = {}
    for _ in range(rounds):
        for loss in losses:
            found = trained(data, loss, seconds, 1e9, MODEL)
            speeds[loss].append(found["tokens_per_second"])
            memory[loss] = found["peak_memory_bytes"]
    ratios = {
        loss: [a / b for a, b in zip(speeds[loss], speeds["stock"], strict=True)] for loss in losses
    }
    curves = {}
    for loss in losses:
        seconds = curve_seconds.get(loss, OTHER_CURVE_SECONDS)
        curves[loss] = trained(data, loss, seconds, seconds / points, MODEL)["curve"]

    stock_ppl = curves["stock"][-1]["ppl"]
    rows = []
    for loss in losses:
        reached = next((p["seconds"] for p in curves[loss] if p["ppl"] <= stock_ppl), None)
        rows.append(
            {
                "loss": loss,
                "tokens/s": f"{median(speeds[loss]):,.0f}",
                "times stock": spread(ratios[loss], 1),
                "peak memory": f"{memory[loss] / 2**20:,.0f} MB",
                "validation ppl": f"{curves[loss][-1]['ppl']:.1f}",
                "after": f"{curves[loss][-1]['seconds']:,.0f} s",
                f"reaches {stock_ppl:.1f} after": f"{reached:,.0f} s" if reached else "not yet",
            }
        )
    body = (
        "One thread, LSTM of width 256, the settings of `thinwire train` but for the loss. Rates "
        f"from {rounds} rounds side by side (median, least to most).\n\n" + table(rows)
    )
    record = {"speeds": speeds, "ratios": ratios, "peak_memory_bytes": memory, "curves": curves}
    write(
        record_name("losses", arguments.corpus),
        "Losses",
        body,
        record | {"seed": 1, "quick": arguments.quick},
    )


if __name__ == "__main__":
    main()
