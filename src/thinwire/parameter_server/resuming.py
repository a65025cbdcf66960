"""Where workers stand in the text when a server continues a saved run, and what was lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinwire.console import print_line
from thinwire.data.batches import Batches
from thinwire.runs.metrics import read_metrics
from thinwire.runs.run import Run


def slot_positions(run: Run, saved: Mapping[str, Any] | None) -> dict[str, Any]:
    """The position of every slot, also if the saved run had another number of workers."""
    if not saved:
        return {}
    config, N = run.config, run.config.run.workers
    streams = N * config.data.batch
    if "places" in saved and (saved["streams"], saved.get("workers", N)) == (streams, N):
        positions: dict[str, Any] = saved["places"]
        return positions
    batches = Batches(
        run.corpus.ids("train"),
        config.data,
        seed=config.run.seed,
        eos_id=run.corpus.meta.eos_id,
        num_workers=N,
    )
    batches.load_state_dict(
        {"epoch": saved["epoch"], "step": saved["step"]}
        | {"streams": saved["streams"], "length": saved["length"]}
    )
    if "epochs" in saved:  # the part of the text is kept, and not the number of steps
        epoch = int(saved["epochs"])
        state = batches.state_dict() | {"epoch": epoch, "step": 0}
        batches.load_state_dict(state)
        step = round((saved["epochs"] - epoch) * batches.steps_per_epoch)
        batches.load_state_dict(state | {"step": min(step, batches.steps_per_epoch - 1)})
    state = batches.state_dict()
    # All slots have read the same amount. Steps continue, so that no earlier draw is repeated.
    position = [state["epoch"], state["step"], run.step, batches.epoch]
    return {str(slot): position for slot in range(N)}


def report_loss(run: Run, saved: Mapping[str, Any]) -> None:
    """After a crash, print how much of the training was not saved."""
    assert run.folder is not None
    recorded = [line for line in read_metrics(run.folder.path) if "seconds" in line]
    if not recorded or recorded[-1]["event"] == "end":
        return
    since = recorded[-1]["seconds"] - saved.get("seconds", 0.0)
    most = max(since, run.config.checkpoint.every_seconds)
    print_line(
        f"The run was cut off; what came after step {run.step} was saved is lost, {most:.0f} "
        "seconds of training at most.",
    )
