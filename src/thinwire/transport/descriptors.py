"""Are there descriptors enough? Gloo and ZeroMQ end the whole process where there are not."""

from __future__ import annotations

import os

from thinwire.errors import UserError


def require_descriptors(count: int) -> None:
    """Refuse to begin where connections could not be opened.

    Raises:
        UserError: this process may not open that many more files.
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
