"""The learning efficiency of a token, when several workers train together.

The efficiency is the number of tokens that a single worker with the default batch needs for the
same perplexity, divided by the number that these workers need. It is below 1 for two reasons. The
batch of all workers together is larger, so the same number of tokens makes fewer steps. And the
copies of workers that take local steps drift apart. The powers below are rough: they were set by
hand after single runs of 2.5 M tokens of the novels at width 256 with default rates (LOG.md), and
are not fitted; `benchmarks/questions/learning.py` compares them with measurements.

    sync      (64 / B) ** 0.27
    periodic  (64 / B) ** 0.15 * (4 / H) ** 0.06 * (4 / R) ** 0.02
    async     as sync

B sequences in the batches of all workers together, H steps between two exchanges of a block, R
steps between two exchanges of a row. Longer runs lose less, because they have enough steps.
"""

from __future__ import annotations

from thinwire.data.config import DataConfig

SYNC_BATCH, PERIODIC_BATCH = 0.27, 0.15
LOCAL_STEPS, ROW_STEPS, FREE_STEPS = 0.06, 0.02, 4


def learning(
    exchange: str, workers: int, batch: int, local_steps: int = 1, row_steps: int = 1
) -> float:
    """The learning efficiency of a token, relative to a single worker with the default batch.

    Args:
        exchange: none, sync, periodic or async.
        workers: number of workers.
        batch: sequences per step of a worker.
        local_steps: steps between two exchanges of the same row of a block (periodic).
        row_steps: steps between two exchanges of the same row of a table (periodic).
    """
    share = min(1.0, DataConfig().batch / (workers * batch))
    if exchange == "periodic":
        drift = min(1.0, FREE_STEPS / local_steps) ** LOCAL_STEPS
        drift *= min(1.0, FREE_STEPS / row_steps) ** ROW_STEPS
        return float(share**PERIODIC_BATCH * drift)
    return float(share**SYNC_BATCH)
