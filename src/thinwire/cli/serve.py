"""`thinwire serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from thinwire.cli.train import Settings
from thinwire.config import RunConfig


def serve(
    data: Path,
    /,
    *,
    out: Annotated[Path, Parameter(metavar="RUN")],
    listen: Annotated[str, Parameter(metavar="HOST:PORT")],
    shard: Annotated[str, Parameter(metavar="I/N")] = "0/1",
    servers: Annotated[str, Parameter(metavar="HOST:PORT,...")] = "",
    key: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    config: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    resume: bool = False,
    settings: Settings = RunConfig(),  # noqa: B008 (frozen)
) -> None:
    """Run one server of an asynchronous run.

    The servers hold the parameters, and server 0 keeps the run folder. Workers join with `thinwire
    work` from any machine that has the key and a copy of the data folder; they may come and go.
    The settings and budgets of `thinwire train` are given here; --workers is the number of parts
    that the text is cut into, one for each worker. Ctrl+C saves a checkpoint and stops; the same
    command with --resume continues.

    Parameters
    ----------
    data
        A data folder, made by `thinwire prepare`.
    out
        The run folder to create.
    listen
        The address to listen on. 127.0.0.1:PORT can be reached from this machine only; any other
        address needs --key.
    shard
        This is server I of N, counted from 0. Each server holds every N-th row. Server 0 leads, and
        it alone writes to --out.
    servers
        The addresses of all servers in the order of their shards, with commas between them. Server
        0 needs it if there are several servers.
    key
        The run's key: a file that only you may read. It is created if it does not exist.
    config
        A TOML file with settings, in the sections named below. Flags override the file.
    resume
        Continue the run in --out with its own settings. Its budget may be raised.

    Examples
    --------
    thinwire serve data --out run --listen '*:5555' --key run.key --workers 8 --seconds 3600
    """
    from thinwire.launch.parameter_server import start_server

    start_server(
        data,
        out,
        settings,
        listen=listen,
        shard=shard,
        servers=servers,
        key_file=key,
        resume=resume,
    )
