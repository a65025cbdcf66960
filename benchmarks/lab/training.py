"""One training run in a process of its own: its speed, its peak memory, its validation curve.

`stock` and `linear_cross_entropy` are PyTorch's own functions in place of a loss of thinwire:
`F.cross_entropy(F.linear(hidden, weight, bias), target)`, and the fused one.

    python -m benchmarks.lab.training DATA LOSS SECONDS EVERY SETTINGS
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn import functional as F

from benchmarks.lab.child import peak_memory_bytes
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.loss.contract import Criterion, LossPlan
from thinwire.loss.output import SoftmaxOutput
from thinwire.runs.device import set_up_device
from thinwire.runs.folder import RunFolder
from thinwire.runs.metrics import read_metrics
from thinwire.training.loop import Trainer

STOCK = ("stock", "linear_cross_entropy")
EVAL_TOKENS, FEW_TOKENS = 20_000, 2_000
Sections = dict[str, dict[str, Any]]


def trained(
    data: Path, loss: str, seconds: float, every: float, settings: Sections
) -> dict[str, Any]:
    """Train for so many seconds in a process of its own.

    Args:
        data: the data folder.
        loss: a `loss.kind`, or one of `STOCK`.
        seconds: of training.
        every: seconds between evaluations; with more than `seconds`, only a few tokens are scored.
        settings: sections of settings besides.

    Returns:
        `tokens_per_second` (the median of the lines of the metrics, the first one left out),
        `peak_memory_bytes`, and the `curve`: seconds, tokens and ppl of every evaluation.
    """
    module = "benchmarks.lab.training"
    given = [str(data), loss, str(seconds), str(every), json.dumps(settings)]
    done = subprocess.run(
        [sys.executable, "-m", module, *given], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Stock(Criterion):
    """PyTorch's own functions on every row."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def plan(self, targets_N: Tensor, step: int) -> LossPlan:
        """All rows."""
        return LossPlan(ids_R=None, target_rows_N=targets_N)

    def loss(self, hidden_ND: Tensor, plan: LossPlan, weight_RD: Tensor, bias_R: Tensor) -> Tensor:
        """The summed cross-entropy in nats."""
        if self.kind == "stock":
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


def measure(
    data: Path, loss: str, seconds: float, every: float, settings: Sections
) -> dict[str, Any]:
    """What `trained` returns, in this process."""
    few = every > seconds
    sections: Sections = {
        "loss": {"kind": "full" if loss in STOCK else loss},
        "eval": {"every_seconds": every, "tokens": FEW_TOKENS if few else EVAL_TOKENS},
        "checkpoint": {"every_seconds": 1e9},
        "metrics": {"every_seconds": 1.0},
        **settings,
    }
    sections["run"] = {"seconds": seconds, "threads": 1, **settings.get("run", {})}
    config, corpus = RunConfig.from_dict(sections), Corpus.open(data)
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        device = set_up_device(config)
        trainer = Trainer(RunFolder.create(run, config, corpus), config, corpus, device)
        if loss in STOCK:
            output = trainer.model.output
            assert isinstance(output, SoftmaxOutput)
            output.criterion = Stock(loss)
        trainer.train()
        lines = read_metrics(run)
    rates = [line["tokens_per_second"] for line in lines if line["event"] == "train"]
    keys = ("seconds", "tokens", "ppl")
    return {
        "tokens_per_second": median(rates[1:] or rates),
        "peak_memory_bytes": peak_memory_bytes(),
        "curve": [{key: line[key] for key in keys} for line in lines if line["event"] == "valid"],
    }


if __name__ == "__main__":
    data, loss, seconds, every, settings = sys.argv[1:]
    print(json.dumps(measure(Path(data), loss, float(seconds), float(every), json.loads(settings))))
