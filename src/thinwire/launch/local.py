"""`--workers N`: starts the workers of a run on this machine and waits until all have ended.

The command itself computes nothing, and does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

from thinwire.config import RunConfig
from thinwire.cores import num_threads
from thinwire.errors import UserError
from thinwire.launch.children import Children, describe_exit, forwarding_signals
from thinwire.launch.handover import SETTINGS_FILE, last_message, post_failure
from thinwire.transport.timeouts import ROLL_CALL_SECONDS

# Time for the other workers to end after a worker has posted why it ended.
NOTICE_SECONDS = 1.0


def train_on_this_machine(data: Path, out: Path, config: RunConfig, *, resume: bool) -> None:
    """Start `run.workers` workers on this machine and wait until all have ended.

    Raises:
        UserError: a worker has failed; the message says which one and why.
    """
    W = config.run.workers
    threads = num_threads(config.run.threads, W)
    config = replace(config, run=replace(config.run, threads=threads))
    with Children() as children, forwarding_signals(children) as received:
        folder = children.folder
        (folder / SETTINGS_FILE).write_text(config.to_toml(), encoding="utf-8")
        for rank in range(W):
            arguments = {"data": str(data), "out": str(out), "resume": resume, "rank": rank}
            arguments["folder"] = str(folder)
            children.start(_name(rank), "replica", arguments, {"LOCAL_RANK": str(rank)})
        failed = _wait(children, W, received)
        messages = [last_message(folder, rank) for rank in range(W)]
    if failed is None:
        return
    message = messages[failed] or next(filter(None, messages), None)
    if received and (message is None or len(received) > 1):
        raise KeyboardInterrupt
    killed = f"{_name(failed)} of {W} {_describe_end(children, failed)}; go on with --resume"
    raise UserError(message or killed)


def _wait(children: Children, num_workers: int, received: Sequence[int]) -> int | None:
    """Wait until all workers have ended; returns the rank of the first that failed, if any.

    After a failure, the others get some time to notice it and to report the worker; then they are
    ended.
    """
    failed, deadline = None, float("inf")
    running = dict(enumerate(children.processes.values()))
    while running and monotonic() < deadline:
        sleep(0.05)
        for rank in [rank for rank, process in running.items() if process.poll() is not None]:
            if not running.pop(rank).returncode or failed is not None:
                continue
            failed, silent = rank, last_message(children.folder, rank) is None
            if (
                silent and running and not received
            ):  # it could not post why it ended, so this process does
                message = (
                    f"it {_describe_end(children, rank)}; go on with --resume from what is saved"
                )
                post_failure(children.folder, num_workers, rank, message)
            deadline = monotonic() + (ROLL_CALL_SECONDS if silent else NOTICE_SECONDS)
    children.end()
    return failed


def _name(rank: int) -> str:
    return f"worker {rank}"


def _describe_end(children: Children, rank: int) -> str:
    return describe_exit(children.processes[_name(rank)].returncode)
