"""The one exception that is meant for the user."""

from __future__ import annotations

import os
from pathlib import Path


class UserError(ValueError):
    """Something the user can mend, said in one sentence.

    The command line prints the sentence alone and exits with status 2; any other exception is a
    defect of thinwire and keeps its traceback.

    Examples:
        >>> import thinwire
        >>> try:
        ...     thinwire.load("nowhere")
        ... except thinwire.UserError as error:
        ...     print(error)
        nowhere is not a run folder: it has no config.toml
    """


def require_posix(system: str = os.name) -> None:
    """Refuse every system but POSIX ones.

    Raises:
        UserError: it is another one.
    """
    if system != "posix":
        raise UserError(
            "thinwire runs on POSIX systems (Linux, macOS) only; on Windows, use the Windows "
            "Subsystem for Linux"
        )


def may_not_read(file: Path) -> UserError:
    """The sentence about a file that is there, but not for this user."""
    return UserError(
        f"{file} may not be read (permission denied): have its owner let you, with chmod or chgrp"
    )


def reason_of(error: OSError) -> str:
    """What the system says: which file, if any, and why."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason
