"""`thinwire work`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def work(
    data: Path,
    /,
    *,
    servers: str,
    key: Path | None = None,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None,
) -> None:
    """Work for the servers of an asynchronous run.

    Until it ends; all settings come from the servers. Ctrl+C leaves, and others take over.

    Parameters
    ----------
    data
        A copy of the servers' data folder.
    servers
        HOST:PORT,...: all servers of the run.
    key
        The run's key, a copy of the file that `thinwire serve` has written.
    threads
        Compute threads. Default: as the run says.
    device
        Where to compute. Default: as the run says.
    """
    from thinwire.launch.parameter_server import start_worker

    start_worker(data, servers, key_file=key, threads=threads, device=device)
