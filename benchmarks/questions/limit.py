"""How near is training to what the machine's matrix products allow?

The arithmetic of a step is counted: 2 operations a multiply-add, forward once and backward twice,
for the body's matrices and for the [tokens x samples] products of the loss. The machine's rate is
measured on square products of fp32 matrices, through the library that the losses use and through
PyTorch's default; the faster of the two counts.

    python -m benchmarks.questions.limit [--data DATA]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.gemm import gemm_flop_per_second
from benchmarks.record.write import spread, table, write
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.runs.device import set_up_device
from thinwire.training.loop import Trainer

ROUNDS = 7
STEPS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--quick", action="store_true", help="one round of three steps")
    arguments = parser.parse_args()
    rounds, steps = (1, 3) if arguments.quick else (ROUNDS, STEPS)
    data = data_folder(arguments)
    rows, record = [], {}
    for width in (256, 512):
        for threads in (1, 2):
            found = measure(data, width, threads, rounds, steps)
            record[f"width {width}, {threads} threads"] = found
            rows.append(
                {
                    "width": width,
                    "threads": threads,
                    "MFLOP a token: body": f"{found['body_flop'] / 1e6:.2f}",
                    "loss": f"{found['loss_flop'] / 1e6:.2f}",
                    "GEMM rate": spread([r / 1e9 for r in found["gemm_flop_per_second"]], 0)
                    + " GFLOP/s",
                    "tokens/s": spread(found["tokens_per_second"], 0),
                    "share of the limit": spread(found["shares"]),
                }
            )
    body = (
        f"LSTM, the defaults of `thinwire train`, {rounds} rounds in which the GEMM rate and the "
        f"training take turns.\n\n{table(rows)}"
    )
    write(record_name("limit", arguments.corpus), "Nearness to the GEMM limit", body, record)


def measure(data: Path, width: int, threads: int, rounds: int, steps: int) -> dict[str, Any]:
    """Training and matrix products in turns, in one process."""
    config = RunConfig.from_dict({"run": {"threads": threads}, "model": {"width": width}})
    device = set_up_device(config)
    corpus = Corpus.open(data)
    trainer = Trainer(None, config, corpus, device)
    body_flop = 3 * 2 * sum(p.numel() for p in trainer.run.blocks.values() if p.dim() == 2)
    # The drawn words of a step; the targets' own rows are dot products and are not counted.
    output, target_N = trainer.model.output, torch.zeros(1, dtype=torch.int64)
    plans = [output.plan(target_N, draw) for draw in range(20)]
    samples = median(0 if p.log_inclusion_S is None else len(p.log_inclusion_S) for p in plans)
    loss_flop = 3 * 2 * samples * width
    rates, speeds = [], []
    with trainer.run.recording(resumed=False):
        for _ in range(10):
            trainer.train_step()
        for _ in range(rounds):
            rates.append(gemm_flop_per_second())
            began, tokens = perf_counter(), trainer.run.tokens
            for _ in range(steps):
                trainer.train_step()
            speeds.append((trainer.run.tokens - tokens) / (perf_counter() - began))
    shares = [
        speed * (body_flop + loss_flop) / rate for speed, rate in zip(speeds, rates, strict=True)
    ]
    return {
        "body_flop": body_flop,
        "loss_flop": loss_flop,
        "gemm_flop_per_second": rates,
        "tokens_per_second": speeds,
        "shares": shares,
    }


if __name__ == "__main__":
    main()
