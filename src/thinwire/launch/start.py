"""Which way a training run starts: alone, with workers on this machine, or under torchrun."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from thinwire.config import RunConfig
from thinwire.errors import UserError


def under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or another launcher that speaks as it does, has started this process."""
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def start(data: Path, out: Path, config: RunConfig, *, resume: bool) -> None:
    """Train with the workers that the settings, or torchrun, ask for.

    Raises:
        UserError: what the user can mend.
    """
    if config.exchange.kind == "auto":
        config = _chosen(data, config)
    if under_torchrun():
        if config.run.workers != 1:
            raise UserError(
                f"torchrun has started {os.environ['WORLD_SIZE']} workers, so --workers "
                f"{config.run.workers} cannot be: leave it out"
            )
        from thinwire.launch.members import train_under_torchrun

        train_under_torchrun(data, out, config, resume=resume)
    elif config.run.workers == 1:
        from thinwire.train.loop import train

        train(data, out, config, resume=resume)
    elif config.exchange.kind == "async":
        from thinwire.launch.asynchronous import run_async

        run_async(data, out, config, resume=resume)
    else:
        from thinwire.launch.here import train_here

        train_here(data, out, config, resume=resume)


def _chosen(data: Path, config: RunConfig) -> RunConfig:
    """Settings whose exchange is the plan's best for these workers on this machine."""
    from thinwire.console import console
    from thinwire.data.corpus import Corpus
    from thinwire.plan.plan import choose
    from thinwire.train.loop import set_up_device

    if under_torchrun():
        raise UserError(
            "--exchange auto knows the link between workers on one machine only: run thinwire plan "
            "with the --link of yours, and name the exchange that it finds"
        )
    if config.run.workers == 1:
        return replace(config, exchange=replace(config.exchange, kind="sync"))
    threads = config.run.threads or max(1, (os.cpu_count() or 1) // config.run.workers)
    set_up_device(replace(config, run=replace(config.run, threads=threads)))
    with console.status("planning"):
        best = choose(Corpus.open(data), config)
    flags = f"--exchange {best.exchange.kind} --codec {best.exchange.codec}"
    console.print(f"Planned: {flags}", highlight=False)
    return best
