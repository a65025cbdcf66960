"""Checks that enough file descriptors are free: without, Gloo and ZeroMQ abort the process."""

from __future__ import annotations

import os

from thinwire.errors import UserError


def require_descriptors(count: int) -> None:
    """Make sure that this process can open `count` more files.

    Raises:
        UserError: it cannot.
    """
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        raise UserError(
            f"connections need {count} more open files, and the system allows {len(opened)} more: "
            "raise the limit with ulimit -n"
        ) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)
