"""A worker that holds the whole model: one of those of `--workers`, or of torchrun.

On one machine they meet through a file and stay on loopback. Under torchrun they meet through its
store; when it restarts them, the run goes on from its newest step.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from torch._C._distributed_c10d import FileStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from thinwire.config import RunConfig
from thinwire.console import console
from thinwire.errors import UserError, reason_of
from thinwire.launch.here import SETTINGS_FILE, word_file
from thinwire.train.device import find_device
from thinwire.train.loop import train
from thinwire.transport.c10d import C10d


def run_member(data: str, out: str, resume: bool, rank: int, folder: str) -> None:
    """One worker that `train_here` has started."""
    config = RunConfig.read(Path(folder) / SETTINGS_FILE)
    store = _meeting(Path(folder), config.run.workers)
    try:
        _join(Path(data), Path(out), config, store, rank, resume=resume, loopback=True)
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
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if config.exchange.kind == "async":
        raise UserError(
            "an asynchronous run over several machines has servers and workers of its own: use "
            "thinwire serve and thinwire work, not torchrun"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = config.run.threads or max(1, (os.cpu_count() or 1) // here)
    config = replace(config, run=replace(config.run, workers=size, threads=threads))
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    store, _, _ = next(rendezvous("env://", rank, size))
    # Its own for each attempt: a dead one's addresses must not be found (PyTorch issue 135712).
    store = PrefixStore(f"thinwire-{attempt}", store)
    alone = here == size
    if rank == 0 and not alone:
        console.print(
            "The workers talk over the network, and PyTorch's collectives neither prove who speaks "
            "nor encrypt: on a network that is not yours alone, use a tunnel.",
            soft_wrap=True,
        )
    # A restart goes on with the run that the first attempt began.
    resume = resume or (attempt > 0 and rank == 0 and (out / "config.toml").exists())
    _join(data, out, config, store, rank, resume=resume, loopback=alone)


def _join(
    data: Path,
    out: Path,
    config: RunConfig,
    store: Store,
    rank: int,
    *,
    resume: bool,
    loopback: bool,
) -> None:
    device = find_device(config.run.device)
    W, timeout_seconds = config.run.workers, config.exchange.timeout_seconds
    collective = C10d(store, rank, W, timeout_seconds, device, loopback=loopback)
    try:
        train(data, out, config, resume=resume, collective=collective)
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
