"""Transformer or LSTM, and which loss for a Transformer at 8 k, 32 k and 50 k words?

Tokens/s of the Transformer with each loss, side by side, round by round; then the perplexity over
time of both models with the sampled loss, in equal seconds.

    python -m benchmarks.questions.transformer [--quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.child import child
from benchmarks.record.write import spread, table, write

VOCABULARIES = (8_000, 32_000, 50_000)
LOSSES = ("sampled", "full", "adaptive", "linear_cross_entropy")
MODELS = ("lstm", "transformer")
ROUNDS, ROUND_SECONDS, CURVE_SECONDS, POINTS = 3, 20.0, 600.0, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 k words, one round, short runs")
    add_corpus(parser)
    parser.add_argument("--child", nargs=5, metavar=("DATA", "MODEL", "LOSS", "SECONDS", "EVERY"))
    arguments = parser.parse_args()
    if arguments.child:
        data, model, loss, seconds, every = arguments.child
        print(json.dumps(measure(Path(data), model, loss, float(seconds), float(every))))
        return
    sizes = VOCABULARIES[:1] if arguments.quick else VOCABULARIES
    rounds, round_seconds, curve_seconds = ROUNDS, ROUND_SECONDS, CURVE_SECONDS
    if arguments.quick:
        rounds, round_seconds, curve_seconds = 1, 3.0, 6.0
    data = {size: data_folder(arguments, f"--vocab-size={size}") for size in sizes}

    def run(size: int, model: str, loss: str, seconds: float, every: float) -> dict[str, Any]:
        return child("transformer", "--child", data[size], model, loss, seconds, every)

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


def measure(data: Path, model: str, loss: str, seconds: float, every: float) -> dict[str, Any]:
    """One run: tokens/s from after the start-up to the end, and the validation curve."""
    from torch import Tensor
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn import functional as F

    from thinwire.config import RunConfig
    from thinwire.data.corpus import Corpus
    from thinwire.loss.contract import Criterion, Plan
    from thinwire.loss.output import SoftmaxOutput
    from thinwire.runs.device import set_up_device
    from thinwire.runs.folder import RunFolder
    from thinwire.runs.metrics import read_metrics
    from thinwire.training.loop import Trainer

    class Stock(Criterion):
        """PyTorch's function on every row."""

        def plan(self, targets_N: Tensor, step: int) -> Plan:
            return Plan(ids_R=None, target_rows_N=targets_N)

        def loss(self, hidden_ND: Tensor, plan: Plan, weight_RD: Tensor, bias_R: Tensor) -> Tensor:
            return F.linear_cross_entropy(
                hidden_ND,
                weight_RD,
                plan.target_rows_N,
                linear_bias=bias_R,
                reduction="sum",
                options=LinearCrossEntropyOptions(),
            )

    stock = loss == "linear_cross_entropy"
    config = RunConfig.from_dict(
        {
            "run": {"seconds": seconds, "threads": 1},
            "model": {"kind": model, "width": 256, "layers": 1},
            "loss": {"kind": "full" if stock else loss},
            "eval": {"every_seconds": every, "tokens": 2_000 if every > seconds else 20_000},
            "checkpoint": {"every_seconds": 1e9},
            "metrics": {"every_seconds": 1.0},
        }
    )
    corpus = Corpus.open(data)
    out = Path(tempfile.mkdtemp())
    try:
        device = set_up_device(config)
        trainer = Trainer(RunFolder.create(out / "run", config, corpus), config, corpus, device)
        if stock:
            output = trainer.model.output
            assert isinstance(output, SoftmaxOutput)
            output.criterion = Stock()
        trainer.run()
        lines = read_metrics(out / "run")
    finally:
        shutil.rmtree(out)
    rates = [line["tokens_per_second"] for line in lines if line["event"] == "train"]
    return {
        "tokens_per_second": median(rates[1:] or rates),
        "curve": [
            {key: line[key] for key in ("seconds", "tokens", "ppl")}
            for line in lines
            if line["event"] == "valid"
        ],
    }


if __name__ == "__main__":
    main()
