"""A worker that holds the whole model, started by `--workers` or by torchrun.

When torchrun restarts the workers, the run continues from its newest checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from thinwire.config import RunConfig
from thinwire.errors import UserError
from thinwire.launch.handover import SETTINGS_FILE, message_file, rendezvous_store
from thinwire.launch.rendezvous import TorchrunRendezvous, joined
from thinwire.training.loop import train


def run_replica(data: str, out: str, resume: bool, rank: int, folder: str) -> None:
    """Run one worker that `train_on_this_machine` has started."""
    config = RunConfig.read(Path(folder) / SETTINGS_FILE)
    store = rendezvous_store(Path(folder), config.run.workers)
    try:
        with joined(config, store, rank, loopback=True) as collective:
            train(Path(data), Path(out), config, resume=resume, collective=collective)
    except UserError as error:  # the parent prints it once for all workers
        message_file(Path(folder), rank).write_text(str(error), encoding="utf-8")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def train_under_torchrun(data: Path, out: Path, config: RunConfig, *, resume: bool) -> None:
    """Run one of the workers that torchrun has started.

    Raises:
        UserError: the settings ask for a run that torchrun cannot start.
    """
    if config.exchange.kind == "async":
        raise UserError(
            "an asynchronous run over several machines has servers and workers of its own: use "
            "thinwire serve and thinwire work, not torchrun"
        )
    rendezvous = TorchrunRendezvous(config)
    config = rendezvous.config
    if config.exchange.kind == "auto":
        from thinwire.launch.auto import with_best_exchange

        with rendezvous.collective("plan") as collective:
            config = with_best_exchange(data, config, collective)
    # A restart continues the run that the first attempt began.
    restarted = rendezvous.restarted and rendezvous.rank == 0
    resume = resume or (restarted and (out / "config.toml").exists())
    with rendezvous.collective("train") as collective:
        train(data, out, config, resume=resume, collective=collective)
