"""Every loss on one corpus with a large vocabulary: speed, memory, perplexity over time.

One thread, LSTM of width 256, everything but the loss the same. `stock` is what PyTorch users
write: `F.cross_entropy(F.linear(hidden, weight, bias), target)`.

    python -m benchmarks.questions.losses [--data DATA] [--quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.child import child, peak_memory_bytes
from benchmarks.record.write import spread, table, write

LOSSES = ("stock", "linear_cross_entropy", "full", "adaptive", "nce", "sampled")
QUICK_LOSSES = ("stock", "sampled")
ROUNDS = 3
SPEED_SECONDS = 8.0
CURVE_SECONDS = {"stock": 1200.0, "sampled": 60.0}
OTHER_CURVE_SECONDS = 40.0
POINTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--quick", action="store_true", help="two losses, a second each")
    parser.add_argument("--stock-seconds", type=float, default=CURVE_SECONDS["stock"])
    parser.add_argument("--child", nargs=3, metavar=("LOSS", "SECONDS", "EVERY"))
    arguments = parser.parse_args()
    data = data_folder(arguments)
    if arguments.child:
        loss, seconds, every = arguments.child
        print(json.dumps(measure(data, loss, float(seconds), float(every))))
        return

    def run(loss: str, seconds: float, every: float) -> dict[str, Any]:
        return child("losses", "--data", data, "--child", loss, seconds, every)

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
            found = run(loss, seconds, 1e9)
            speeds[loss].append(found["tokens_per_second"])
            memory[loss] = found["peak_memory_bytes"]
    ratios = {
        loss: [a / b for a, b in zip(speeds[loss], speeds["stock"], strict=True)] for loss in losses
    }
    curves = {}
    for loss in losses:
        seconds = curve_seconds.get(loss, OTHER_CURVE_SECONDS)
        curves[loss] = run(loss, seconds, seconds / points)["curve"]

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


def measure(data: Path, loss: str, seconds: float, every: float) -> dict[str, Any]:
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
        """PyTorch's own functions on every row."""

        def plan(self, targets_N: Tensor, step: int) -> Plan:
            return Plan(ids_R=None, target_rows_N=targets_N)

        def loss(self, hidden_ND: Tensor, plan: Plan, weight_RD: Tensor, bias_R: Tensor) -> Tensor:
            if loss == "stock":
                logits = F.linear(hidden_ND, weight_RD, bias_R)
                return F.cross_entropy(logits, plan.target_rows_N, reduction="sum")
            return F.linear_cross_entropy(
                hidden_ND,
                weight_RD,
                plan.target_rows_N,
                linear_bias=bias_R,
                reduction="sum",
                options=LinearCrossEntropyOptions(),
            )

    own = loss in ("stock", "linear_cross_entropy")
    config = RunConfig.from_dict(
        {
            "run": {"seconds": seconds, "threads": 1},
            "model": {"width": 256, "layers": 1, "dropout": 0.0},
            "loss": {"kind": "full" if own else loss},
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
        if own:
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
        "peak_memory_bytes": peak_memory_bytes(),
        "curve": [
            {key: line[key] for key in ("seconds", "tokens", "ppl")}
            for line in lines
            if line["event"] == "valid"
        ],
    }


if __name__ == "__main__":
    main()
