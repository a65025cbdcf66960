"""How much a token teaches when several workers learn together.

The batch of all workers together is larger than one worker's, so a run of so many tokens has fewer
steps; workers that step alone for a while learn from copies that drift apart. Both cost tokens to
the same perplexity. The powers below are rough: set by hand after single runs of 2.5 M tokens of
the novels at width 256 with default rates (LOG.md), and not yet fitted;
`benchmarks/questions/learning.py` measures beside them what tokens teach.

    sync      (64 / B) ** 0.27
    periodic  (64 / B) ** 0.15 * (4 / H) ** 0.06 * (4 / R) ** 0.02
    async     as sync

B sequences in all workers' batches together; H steps between two exchanges of a block, R of a row.
Longer runs lose less, for they have steps enough.
"""

from __future__ import annotations

from thinwire.data.config import DataConfig

SYNC_BATCH, PERIODIC_BATCH = 0.27, 0.15
LOCAL_STEPS, ROW_STEPS, FREE_STEPS = 0.06, 0.02, 4


def learning(
    exchange: str, workers: int, batch: int, local_steps: int = 1, row_steps: int = 1
) -> float:
    """What a token teaches, beside one of a single worker with the default batch.

    Args:
        exchange: none, sync, periodic or async.
        workers: whose batches are in an update.
        batch: sequences a step of a worker.
        local_steps: between two exchanges of the same row of a block (periodic).
        row_steps: between two exchanges of the same row of a table (periodic).
    """
    share = min(1.0, DataConfig().batch / (workers * batch))
    if exchange == "periodic":
        drift = min(1.0, FREE_STEPS / local_steps) ** LOCAL_STEPS
        drift *= min(1.0, FREE_STEPS / row_steps) ** ROW_STEPS
        return float(share**PERIODIC_BATCH * drift)
    return float(share**SYNC_BATCH)
