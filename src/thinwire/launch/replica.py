"""A worker that holds the whole model: one of those of `--workers`, or of torchrun.

Under torchrun, when it restarts the workers, the run continues from its newest step.
"""

from __future__ import annotations

from pathlib import Path

from thinwire.config import RunConfig
from thinwire.errors import UserError
from thinwire.launch.handover import SETTINGS_FILE, meeting_store, message_file
from thinwire.launch.rendezvous import TorchrunMeeting, joined
from thinwire.training.loop import train


def run_replica(data: str, out: str, resume: bool, rank: int, folder: str) -> None:
    """One worker that `train_on_this_machine` has started."""
    config = RunConfig.read(Path(folder) / SETTINGS_FILE)
    store = meeting_store(Path(folder), config.run.workers)
    try:
        with joined(config, store, rank, loopback=True) as team:
            train(Path(data), Path(out), config, resume=resume, collective=team)
    except UserError as error:  # the parent says it, once for all workers
        message_file(Path(folder), rank).write_text(str(error), encoding="utf-8")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def train_under_torchrun(data: Path, out: Path, config: RunConfig, *, resume: bool) -> None:
    """One worker of those that torchrun has started.

    Raises:
        UserError: the settings ask for what torchrun cannot give.
    """
    if config.exchange.kind == "async":
        raise UserError(
            "an asynchronous run over several machines has servers and workers of its own: use "
            "thinwire serve and thinwire work, not torchrun"
        )
    meeting = TorchrunMeeting(config)
    config = meeting.config
    if config.exchange.kind == "auto":
        from thinwire.launch.auto import chosen

        with meeting.team("plan") as team:
            config = chosen(data, config, team)
    # A restart goes on with the run that the first attempt began.
    restarted = meeting.restarted and meeting.rank == 0
    resume = resume or (restarted and (out / "config.toml").exists())
    with meeting.team("train") as team:
        train(data, out, config, resume=resume, collective=team)
