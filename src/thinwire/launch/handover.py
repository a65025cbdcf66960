"""Files that a command and the workers that it starts on this machine share.

They are in a temporary folder of the command: the settings, the store through which the workers
find each other, and the last message of each worker, which says why it ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

SETTINGS_FILE = "settings.toml"


def message_file(folder: Path, rank: int) -> Path:
    """The file to which a worker writes its last message. The parent prints the message."""
    return folder / f"worker-{rank}.message"


def last_message(folder: Path, rank: int) -> str | None:
    """The message that says why a worker ended; None: it wrote none."""
    file = message_file(folder, rank)
    return file.read_text(encoding="utf-8") if file.exists() else None


def rendezvous_store(folder: Path, num_workers: int) -> Store:
    """The store through which the workers find each other. It is a file."""
    from torch._C._distributed_c10d import FileStore

    return FileStore(str(folder / "rendezvous"), num_workers)


def post_failure(folder: Path, num_workers: int, rank: int, message: str) -> None:
    """Tell the other workers why a worker has ended that could not tell them itself."""
    rendezvous_store(folder, num_workers).set(f"word/{rank}", message)
