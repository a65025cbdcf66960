"""`--workers N`: workers of one run on this machine, started, waited for and, at last, all gone.

The command itself computes nothing, and starts them without importing torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

from thinwire.config import RunConfig
from thinwire.cores import num_threads
from thinwire.errors import UserError
from thinwire.launch.children import Children, how_it_ended, passing_signals_on
from thinwire.launch.handover import SETTINGS_FILE, last_message, post_failure
from thinwire.transport.timeouts import ROLL_CALL_SECONDS

# What a worker that still runs may take to see that another one has said why it ended.
NOTICE_SECONDS = 1.0


def train_on_this_machine(data: Path, out: Path, config: RunConfig, *, resume: bool) -> None:
    """Start `run.workers` workers on this machine and wait until all have ended.

    Raises:
        UserError: one has failed; the sentence says which, and why.
    """
    W = config.run.workers
    threads = num_threads(config.run.threads, W)
    config = replace(config, run=replace(config.run, threads=threads))
    with Children() as children, passing_signals_on(children) as received:
        folder = children.folder
        (folder / SETTINGS_FILE).write_text(config.to_toml(), encoding="utf-8")
        for rank in range(W):
            arguments = {"data": str(data), "out": str(out), "resume": resume, "rank": rank}
            arguments["folder"] = str(folder)
            children.start(_name(rank), "member", arguments, {"LOCAL_RANK": str(rank)})
        failed = _wait(children, W, received)
        said = [last_message(folder, rank) for rank in range(W)]
    if failed is None:
        return
    sentence = said[failed] or next((message for message in said if message), None)
    if received and (sentence is None or len(received) > 1):
        raise KeyboardInterrupt
    killed = f"{_name(failed)} of {W} {_end_of(children, failed)}; go on with --resume"
    raise UserError(sentence or killed)


def _wait(children: Children, num_workers: int, received: Sequence[int]) -> int | None:
    """Until all have ended; the rank of the first that failed, if any.

    The others get the time to notice it and to say which one it was; then they are ended.
    """
    failed, deadline = None, float("inf")
    running = dict(enumerate(children.processes.values()))
    while running and monotonic() < deadline:
        sleep(0.05)
        for rank in [rank for rank, process in running.items() if process.poll() is not None]:
            if not running.pop(rank).returncode or failed is not None:
                continue
            failed, silent = rank, last_message(children.folder, rank) is None
            if silent and running and not received:  # it could not say why, so we do
                message = f"it {_end_of(children, rank)}; go on with --resume from what is saved"
                post_failure(children.folder, num_workers, rank, message)
            deadline = monotonic() + (ROLL_CALL_SECONDS if silent else NOTICE_SECONDS)
    children.end()
    return failed


def _name(rank: int) -> str:
    return f"worker {rank}"


def _end_of(children: Children, rank: int) -> str:
    return how_it_ended(children.processes[_name(rank)].returncode)
