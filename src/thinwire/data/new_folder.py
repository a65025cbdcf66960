"""Creates a data folder that gets its name only when it is complete."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinwire.data.corpus import META_FILE
from thinwire.errors import UserError
from thinwire.files import set_aside
from thinwire.interrupts import interrupt_later
from thinwire.locks import only_writer


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """Yield a folder to fill, which is renamed to `out` if no error occurs inside."""
    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give --out another name")
    if not out.name:
        raise UserError(f"{out} cannot be replaced by a data folder: give --out another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(out.with_name(f".{out.name}.lock"), str(out)) as alone:
        if alone:
            _clear_leftovers(out)
        with _filled(out, force) as folder:
            yield folder


def _clear_leftovers(out: Path) -> None:
    """Remove or restore what a killed `prepare` of this folder has left; none runs at present."""
    leftover = re.compile(rf"\.{re.escape(out.name)}\.\d+\.(new|old)")
    for path in out.parent.iterdir():
        if not (found := leftover.fullmatch(path.name)):
            continue
        if found[1] == "old" and not out.exists():  # killed while it replaced what was there
            path.rename(out)
        else:
            shutil.rmtree(path)


@contextmanager
def _filled(out: Path, force: bool) -> Iterator[Path]:
    if out.is_dir() and any(out.iterdir()):
        if not (out / META_FILE).is_file():
            raise UserError(f"{out} is no data folder and not empty: give --out another name")
        if not force:
            raise UserError(f"{out} holds data already: --force replaces it")
    folder = out.with_name(f".{out.name}.{os.getpid()}.new")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    with set_aside() as release:
        try:
            folder.mkdir()
            yield folder
            for path in (*folder.iterdir(), folder):
                _fsync(path)
            if out.exists():
                out.rename(old)
            folder.rename(out)
            _fsync(out.parent)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise UserError(
                    f"the disk of {out} is full: while it works, prepare needs four bytes a token "
                    "there, beside the folder itself"
                ) from error
            raise
        finally:
            with interrupt_later():  # Ctrl+C often comes twice
                release()
                if old.exists() and not out.exists():
                    old.rename(out)
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
