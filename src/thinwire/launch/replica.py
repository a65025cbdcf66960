"""A worker that holds the whole model: one of those of `--workers`, or of torchrun.

On one machine they meet through a file and stay on loopback. Under torchrun they meet through its
store; when it restarts them, the run goes on from its newest step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from torch._C._distributed_c10d import FileStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from thinwire.config import RunConfig
from thinwire.console import console
from thinwire.errors import UserError, reason_of
from thinwire.launch.local import SETTINGS_FILE, word_file
from thinwire.runs.device import find_device
from thinwire.train.loop import train
from thinwire.transport.alone import Alone
from thinwire.transport.c10d import C10d
from thinwire.transport.collective import Collective


def run_member(data: str, out: str, resume: bool, rank: int, folder: str) -> None:
    """One worker that `train_here` has started."""
    config = RunConfig.read(Path(folder) / SETTINGS_FILE)
    store = _meeting(Path(folder), config.run.workers)
    try:
        with _joined(config, store, rank, loopback=True) as team:
            train(Path(data), Path(out), config, resume=resume, collective=team)
    except UserError as error:  # the parent says it, once for all workers
        word_file(Path(folder), rank).write_text(str(error), encoding="utf-8")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def speak_for(rank: int, num_workers: int, folder: Path, word: str) -> None:
    """Let the others know why a worker has ended that could not say it itself."""
    _meeting(folder, num_workers).set(f"word/{rank}", word)


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
    meeting = Meeting(config)
    config = meeting.config
    if config.exchange.kind == "auto":
        from thinwire.launch.auto import chosen

        with meeting.team("plan") as team:
            config = chosen(data, config, team)
    # A restart goes on with the run that the first attempt began.
    restarted = meeting.attempt > 0 and meeting.rank == 0
    resume = resume or (restarted and (out / "config.toml").exists())
    with meeting.team("train") as team:
        train(data, out, config, resume=resume, collective=team)


class Meeting:
    """Where the workers of torchrun find each other.

    Attributes:
        config: the settings, with as many workers as there are, and this one's threads.
        rank: this worker.
        attempt: how often torchrun has started all again.
    """

    def __init__(self, config: RunConfig) -> None:
        self.rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        threads = config.run.threads or max(1, (os.cpu_count() or 1) // here)
        self.config = replace(config, run=replace(config.run, workers=size, threads=threads))
        self.attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self._store, _, _ = next(rendezvous("env://", self.rank, size))
        self._alone = here == size
        if self.rank == 0 and not self._alone:
            console.print(
                "The workers talk over the network, and PyTorch's collectives neither prove who "
                "speaks nor encrypt: on a network that is not yours alone, use a tunnel.",
                soft_wrap=True,
            )

    def team(self, purpose: str) -> AbstractContextManager[Collective]:
        """All workers, to do something together; once for each purpose."""
        if self.config.run.workers == 1:
            return nullcontext(Alone())
        # Its own for each attempt: a dead one's addresses must not be found (PyTorch issue 135712).
        store = PrefixStore(f"thinwire-{self.attempt}-{purpose}", self._store)
        return _joined(self.config, store, self.rank, loopback=self._alone)


@contextmanager
def _joined(config: RunConfig, store: Store, rank: int, *, loopback: bool) -> Iterator[Collective]:
    """All workers; one that leaves them by an error lets them know why."""
    device = find_device(config.run.device)
    W, timeout_seconds = config.run.workers, config.exchange.timeout_seconds
    collective = C10d(store, rank, W, timeout_seconds, device, loopback=loopback)
    try:
        yield collective
    except UserError as error:
        collective.leave_word(str(error))
        raise
    except OSError as error:
        collective.leave_word(reason_of(error))
        raise UserError(reason_of(error)) from error
    finally:
        collective.close()


def _meeting(folder: Path, num_workers: int) -> Store:
    return FileStore(str(folder / "meeting"), num_workers)
