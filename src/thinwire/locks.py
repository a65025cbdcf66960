"""One writer at a time: a lock on a file that ends with the process that holds it, however it ends.

The lock is flock(2). What is supported, said here once:

- POSIX systems only (Linux, macOS): elsewhere every command refuses with a sentence at its start.
- Local file systems, and network file systems whose server keeps locks. Linux turns flock into a
  lock at the server on NFS and SMB, so that it holds between machines; a machine that dies keeps
  its lock until the server finds out.
- Where a file system has no locks (some FUSE and Lustre mounts), a warning says so, and nothing
  holds a second writer back.

The file is removed when the writer is done. A writer that was killed leaves it behind, unlocked; it
does not stand in the way. Who opens the file just before it is removed holds a lock on a file
without a name: that is noticed, and the lock is taken anew.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thinwire.console import warn
from thinwire.errors import UserError, require_posix
from thinwire.interrupts import interrupt_later

LOCK_FILE = "lock"
_HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def only_writer(file: Path, what: str) -> Iterator[bool]:
    """Inside, no other process holds the lock on `file`; whether there are locks is returned.

    Args:
        file: is made, and removed at the end; its folder exists.
        what: what only one process may write, for the sentence.

    Raises:
        UserError: another process holds the lock.
    """
    require_posix()
    descriptor, name = None, os.fspath(file)
    try:
        with interrupt_later():  # or nobody would know whose file it is
            descriptor = _locked(file, what)
        if descriptor is None:
            warn(
                f"the file system of {file.parent} has no locks, so nothing keeps a second "
                f"process from writing {what} at the same time"
            )
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # Not `suppress`: Python would look for Ctrl+C before the file is gone.
            try:  # noqa: SIM105
                os.unlink(name)
            except OSError:  # its folder may be gone
                pass
            os.close(descriptor)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Inside, this process alone writes the run folder, which is made if it does not exist.

    Folders that were made and are still empty at the end are removed.

    Raises:
        UserError: another process writes there, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a run needs a folder")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder / LOCK_FILE, f"the run {folder}"):
            yield
    finally:
        with suppress(OSError):  # it is not empty
            for path in made:
                path.rmdir()


def _locked(file: Path, what: str) -> int | None:
    """The descriptor that holds the lock; None where there are no locks."""
    import fcntl  # here: on other systems there is none

    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(descriptor, file):
                _sign(descriptor)
                return descriptor
        except OSError as error:
            holder = os.pread(descriptor, 300, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            if error.errno in _HELD:
                raise UserError(
                    f"{holder} is writing {what}, which has one writer at a time: wait until it "
                    "has ended, or name another --out"
                ) from None
            if error.errno in _NO_LOCKS:
                return None
            raise
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Write down who holds the lock. On a full disk it is held all the same."""
    with suppress(OSError):
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _is_same(descriptor: int, file: Path) -> bool:
    """Whether the file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
