"""Starts a training run: in this process, with workers on this machine, or under torchrun."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from thinwire.config import RunConfig
from thinwire.errors import UserError

if TYPE_CHECKING:
    from thinwire.runs.metrics import OnEvent


def under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or a launcher with the same variables, has started this process."""
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def world_size(environment: Mapping[str, str] = os.environ) -> int:
    """The number of workers that torchrun has started, including this one; 1 without torchrun."""
    return int(environment["WORLD_SIZE"]) if under_torchrun(environment) else 1


def start(
    data: Path,
    out: Path,
    config: RunConfig,
    *,
    resume: bool,
    on_event: OnEvent | None = None,
) -> None:
    """Train with the workers that the settings or torchrun specify.

    Args:
        data: the data folder.
        out: the run folder.
        config: all settings.
        resume: continue the run in `out`.
        on_event: called with each line of metrics.jsonl; for a single worker only.

    Raises:
        UserError: the user can correct the cause.
    """
    config.exchange.require_applicable()
    if under_torchrun():
        if config.run.workers not in (1, world_size()):
            raise UserError(
                f"torchrun has started {world_size()} workers, so --workers "
                f"{config.run.workers} cannot be: leave it out"
            )
        from thinwire.launch.replica import train_under_torchrun

        train_under_torchrun(data, out, config, resume=resume)
        return
    if on_event is not None and config.run.workers > 1:
        raise UserError(
            f"on_event is called by a single worker, in its process, and {config.run.workers} "
            "workers were asked for: train with one, or read metrics.jsonl"
        )
    if config.exchange.kind == "auto":
        from thinwire.launch.auto import with_best_exchange

        config = with_best_exchange(data, config)
    if config.run.workers == 1:
        from thinwire.training.loop import train

        train(data, out, config, resume=resume, on_event=on_event)
    elif config.exchange.kind == "async":
        from thinwire.launch.supervisor import run_async

        run_async(data, out, config, resume=resume)
    else:
        from thinwire.launch.local import train_on_this_machine

        train_on_this_machine(data, out, config, resume=resume)
