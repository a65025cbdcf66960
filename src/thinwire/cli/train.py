"""`thinwire train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from thinwire.config import RunConfig

# Flags are spelt like the keys of a settings file, with underscores.
Settings = Annotated[
    RunConfig,
    Parameter(name="*", name_transform=str, negative_bool=(), json_dict=False, json_list=False),
]


def train(
    data: Path,
    /,
    *,
    out: Annotated[Path, Parameter(metavar="RUN")],
    config: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    resume: bool = False,
    settings: Settings = RunConfig(),  # noqa: B008 (frozen)
) -> None:
    """Train a language model on a data folder.

    Ctrl+C saves a checkpoint and stops; the same command with --resume continues. Started by
    torchrun, this process is one of its workers.

    Parameters
    ----------
    data
        A data folder, made by `thinwire prepare`.
    out
        The run folder to create.
    config
        A TOML file with settings, in the sections named below. Flags override the file.
    resume
        Continue the run in --out with its own settings. Its budget may be raised.

    Examples
    --------
    thinwire train data --out run --seconds 600
    thinwire train data --out run --seconds 1200 --resume
    thinwire train data --out run2 --workers 4 --exchange periodic --codec int8
    """
    from thinwire.launch.start import start

    start(data, out, settings, resume=resume)
