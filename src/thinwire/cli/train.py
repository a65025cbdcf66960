"""`thinwire train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from thinwire.config import RunConfig

# Flags are spelt as the keys of a settings file are, with underscores.
Settings = Annotated[RunConfig, Parameter(name="*", name_transform=str)]


def train(
    data: Path,
    /,
    *,
    out: Path,
    config: Path | None = None,
    resume: bool = False,
    settings: Settings = RunConfig(),  # noqa: B008 (frozen)
) -> None:
    """Train a language model on a data folder.

    Ctrl+C saves and stops; the same command with --resume goes on. Under torchrun this is one of
    its workers.

    Parameters
    ----------
    data
        A data folder, made by `thinwire prepare`.
    out
        The run folder to create.
    config
        Settings from a TOML file, with sections named as below; flags go before it.
    resume
        Go on with the run in --out, with its own settings; budgets may be raised.
    """
    from thinwire.launch.start import start

    start(data, out, settings, resume=resume)
