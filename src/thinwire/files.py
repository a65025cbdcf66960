"""Files that appear whole or not at all, and JSON that is nested as ours is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Our files need 4 levels, a tokenizer.json up to about 10.
MAX_DEPTH = 100


def write_whole(path: Path, content: str | bytes) -> None:
    """Write bytes, or a text as UTF-8, in place of what was there, or leave that."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def set_aside(count: int = 4) -> Iterator[Callable[[], None]]:
    """Inside, some file descriptors are kept, until the function that is yielded is called.

    Removing a folder takes a few, and where all are in use it would stay.

    Raises:
        OSError: there are not as many.
    """
    kept: list[int] = []

    def release() -> None:
        while kept:
            os.close(kept.pop())

    try:
        for _ in range(count):
            kept.append(os.open(os.devnull, os.O_RDONLY))
        yield release
    finally:
        release()


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: the system refuses.
        ValueError: it is no JSON in UTF-8, or nested too deep.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """What a JSON text stands for, nested no deeper than `MAX_DEPTH`.

    Deeper ones would end in a RecursionError: here, or wherever they are printed or written again.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [
            value
            for outer in level
            if isinstance(outer, dict | list)
            for value in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return content
    raise ValueError("it is nested too deep")
