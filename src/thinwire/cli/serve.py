"""`thinwire serve`."""

from __future__ import annotations

from pathlib import Path

from thinwire.cli.train import Settings
from thinwire.config import RunConfig


def serve(
    data: Path,
    /,
    *,
    out: Path,
    listen: str,
    shard: str = "0/1",
    servers: str = "",
    key: Path | None = None,
    config: Path | None = None,
    resume: bool = False,
    settings: Settings = RunConfig(),  # noqa: B008 (frozen)
) -> None:
    """Serve an asynchronous run: hold its parameters.

    It also keeps the record. Workers come with `thinwire work`, from any machine that has the key
    and a copy of the data folder; they may come and go. It takes the settings and budgets of
    `thinwire train`; --workers says for how many workers the text is cut. Ctrl+C saves and stops;
    the same command with --resume goes on.

    Parameters
    ----------
    data
        A data folder, made by `thinwire prepare`.
    out
        The run folder to create.
    listen
        HOST:PORT. 127.0.0.1 is reached from this machine alone; anything else needs --key.
    shard
        I/N: this is server I, from 0, of N, each of which holds every N-th row. Server 0 leads, and
        alone writes to --out.
    servers
        HOST:PORT,...: all servers in the order of their shards; server 0 of several needs it.
    key
        The run's key, a file that only you may read; made if it does not exist.
    config
        Settings from a TOML file, with sections named as below; flags go before it.
    resume
        Go on with the run in --out, with its own settings; budgets may be raised.
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
