"""Sets up the first server of an asynchronous run, and runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.locks import one_writer
from thinwire.parameter_server.leader import Leader
from thinwire.parameter_server.resuming import report_loss
from thinwire.runs.device import set_up_device
from thinwire.runs.folder import RunFolder, resumed_folder
from thinwire.runs.precision import with_precision
from thinwire.runs.run import Run
from thinwire.transport.messages import Connection, Listener


def serve(
    data: Path,
    out: Path,
    config: RunConfig,
    *,
    listener: Callable[[int], Listener],
    resume: bool = False,
    followers: Sequence[Connection] = (),
    ready: Callable[[], None] = lambda: None,
    threads: int | None = None,
) -> None:
    """Serve a run on the data folder `data` until its budget is spent; the result is in `out`.

    Ctrl+C saves and raises KeyboardInterrupt. `resume` means the same as in `train`.

    Args:
        data: a data folder.
        out: the run folder.
        config: all settings; `run.workers` is the number of parts of the text.
        listener: opens the server's listener; its argument is the size limit of messages in bytes.
        resume: continue from the newest whole step.
        followers: connections to the other servers of the run, in the order of their shards.
        ready: called when workers may join.
        threads: compute threads of this server; None: `run.threads` or, if that is 0, all cores.

    Raises:
        UserError: the user can correct the cause.
    """
    with one_writer(out):
        _serve(data, out, config, listener, resume, followers, ready, threads)


def _serve(
    data: Path,
    out: Path,
    config: RunConfig,
    listener: Callable[[int], Listener],
    resume: bool,
    followers: Sequence[Connection],
    ready: Callable[[], None],
    threads: int | None,
) -> None:
    corpus = Corpus.open(data)
    corpus.require_validation_text()
    config = replace(config, exchange=replace(config.exchange, kind="async"))
    device = set_up_device(config, threads)
    folder = (resumed_folder if resume else RunFolder.planned)(out, config, corpus)
    config = with_precision(folder.config, device)
    folder = replace(folder, config=config)
    run = Run(folder, config, corpus, device, config.run.workers)
    saved: Mapping[str, Any] = {}
    if resume and run.checkpoints is not None and run.checkpoints.newest is not None:
        saved = run.load().state
    opened = listener(message_bytes(run.num_parameters))
    # Only now, so that a run that cannot start leaves no folder behind.
    if resume:
        report_loss(run, saved)
        folder.write_config()
    else:
        folder.write(corpus)
    leader = Leader(run, opened, followers, saved)
    try:
        leader.serve(resumed=resume, ready=ready)
    finally:
        leader.close()
        if run.checkpoints is not None:  # before another process may write
            run.checkpoints.finish()


def message_bytes(num_parameters: int) -> int:
    """The size limit of messages in bytes: all parameters in fp32, twice, for ids and headers."""
    return 8 * num_parameters
