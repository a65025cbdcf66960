"""`thinwire work`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def work(
    data: Path,
    /,
    *,
    servers: Annotated[str, Parameter(metavar="HOST:PORT,...")],
    key: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None,
) -> None:
    """Run one worker of an asynchronous run.

    It trains until the run ends, and ends with status 2 if the run has failed. All settings come
    from the servers. Ctrl+C leaves the run, and other workers take over its part of the text.

    Parameters
    ----------
    data
        A copy of the servers' data folder.
    servers
        The addresses of all servers of the run, with commas between them.
    key
        The run's key: a copy of the file that `thinwire serve` has written.
    threads
        Number of compute threads. Default: the run's setting.
    device
        Where to compute. Default: the run's setting.

    Examples
    --------
    thinwire work data --servers alpha:5555 --key run.key
    thinwire work data --servers alpha:5555,beta:5555 --key run.key --threads 4
    """
    from thinwire.launch.parameter_server import start_worker

    start_worker(data, servers, key_file=key, threads=threads, device=device)
