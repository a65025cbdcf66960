"""What the command hands to the workers that it starts on this machine, and what they hand back.

All of it lies in the folder of the command's processes: the settings, the file through which the
workers meet, and each worker's last message, the sentence with which it ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

SETTINGS_FILE = "settings.toml"


def message_file(folder: Path, rank: int) -> Path:
    """Where a worker leaves its last message; the parent prints it."""
    return folder / f"worker-{rank}.message"


def last_message(folder: Path, rank: int) -> str | None:
    """The sentence with which a worker ended; None: it left none."""
    file = message_file(folder, rank)
    return file.read_text(encoding="utf-8") if file.exists() else None


def meeting_store(folder: Path, num_workers: int) -> Store:
    """The store, a file, through which the workers find each other."""
    from torch._C._distributed_c10d import FileStore

    return FileStore(str(folder / "meeting"), num_workers)


def post_failure(folder: Path, num_workers: int, rank: int, message: str) -> None:
    """Tell the other workers why one has ended that could not say it itself."""
    meeting_store(folder, num_workers).set(f"word/{rank}", message)
