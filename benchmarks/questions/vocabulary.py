"""Is the cost independent of the vocabulary? Tokens/s and peak memory from 67 k to 1 M words.

The text is drawn from a Zipf distribution, so that any vocabulary can be had.

    python -m benchmarks.questions.vocabulary [--quick]
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

from benchmarks.lab.child import child, peak_memory_bytes
from benchmarks.record.write import spread, table, write

SIZES = (67_000, 250_000, 1_000_000)
TOKENS = 1_000_000
ROUNDS = 5
SECONDS = 12.0
QUICK_SIZES, QUICK_SECONDS = (20_000, 67_000), 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, few words")
    parser.add_argument("--child", nargs=2, metavar=("SIZE", "SECONDS"))
    arguments = parser.parse_args()
    if arguments.child:
        size, seconds = arguments.child
        print(json.dumps(measure(int(size), float(seconds))))
        return
    sizes: Sequence[int] = SIZES
    rounds, seconds = ROUNDS, SECONDS
    if arguments.quick:
        sizes, rounds, seconds = QUICK_SIZES, 1, QUICK_SECONDS
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            found[size].append(child("vocabulary", "--child", size, seconds))
    rows = []
    for size, runs in found.items():
        shares = [
            a["tokens_per_second"] / b["tokens_per_second"]
            for a, b in zip(runs, found[sizes[0]], strict=True)
        ]
        peak = max(run["peak_memory_bytes"] for run in runs)
        state = runs[0]["state_bytes"]
        rows.append(
            {
                "words": f"{size:,}",
                "tokens/s": f"{median(run['tokens_per_second'] for run in runs):,.0f}",
                f"share of the rate at {sizes[0]:,}": spread(shares),
                "parameters and row state": f"{state / 2**20:,.0f} MB",
                "peak memory": f"{peak / 2**20:,.0f} MB",
                "bound: 1.3 x + 500 MB": f"{1.3 * state / 2**20 + 500:,.0f} MB",
            }
        )
    body = (
        "One thread, LSTM of width 256, 1,000 samples, one checkpoint saved; Zipf text.\n\n"
        + table(rows)
    )
    write("vocabulary", "Size of the vocabulary", body, {"runs": found, "seed": 1})


def measure(size: int, seconds: float) -> dict[str, Any]:
    """One run on a drawn text whose vocabulary has `size` words, a save in the middle."""
    import numpy as np
    import torch

    from thinwire.config import RunConfig
    from thinwire.data.batches import Batches
    from thinwire.exchange.local import Local
    from thinwire.language_model import LanguageModel
    from thinwire.optim.updater import Updater
    from thinwire.runs.checkpoints import Checkpoints
    from thinwire.runs.clock import Clock
    from thinwire.runs.device import set_up_device
    from thinwire.seeds import numpy_generator

    config = RunConfig.from_dict({"run": {"threads": 1}, "loss": {"samples": 1000}})
    set_up_device(config)
    p_V = 1.0 / np.arange(1, size + 1)
    generator = numpy_generator(1, "vocabulary benchmark")
    ends_V = np.cumsum(p_V / p_V.sum())
    ids = np.searchsorted(ends_V, generator.random(TOKENS)).clip(max=size - 1).astype(np.uint32)
    counts_V = torch.from_numpy(np.bincount(ids, minlength=size))
    model = LanguageModel(config.model, config.loss, counts_V, seed=1)
    tables, blocks = model.tables(), model.blocks()
    updater = Updater.of(tables, blocks, config.optim)
    exchange = Local(updater)
    batches = Batches(ids, config.data, seed=1, eos_id=0)
    clock, state, step, tokens = Clock(), None, 0, 0
    folder = Path(tempfile.mkdtemp())
    begun = 0.0
    warm_up = 20
    while step < warm_up or clock.seconds - begun < seconds:
        if step == warm_up:
            clock.start()
            begun = clock.seconds
        batch = next(batches)
        task = model.touch(batch, step)
        rows = exchange.fetch(task.touched)
        total, state = model.loss(task, rows, state, None)
        (total / batch.num_targets).backward()
        exchange.push(task.touched, rows, blocks)
        exchange.update()
        step += 1
        tokens += batch.num_targets if step > warm_up else 0
    took = clock.seconds - begun
    Checkpoints(folder).save(step, {"model": {**tables, **blocks}}, {})
    shutil.rmtree(folder, ignore_errors=True)
    state_bytes = sum(p.nbytes for p in [*tables.values(), *blocks.values()])
    for optimizer in (updater.row_optimizer, updater.dense_optimizer):
        for entries in optimizer.state.values():
            state_bytes += sum(t.nbytes for t in entries.values() if isinstance(t, torch.Tensor))
    return {
        "tokens_per_second": tokens / took,
        "peak_memory_bytes": peak_memory_bytes(),
        "state_bytes": state_bytes,
    }


if __name__ == "__main__":
    main()
