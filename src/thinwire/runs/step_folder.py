"""The folder of one saved step: written and flushed as a whole, and checked when it is read.

It has one safetensors file for each group of tensors, `state.json`, and `checksums.json`, which is
written last and lists the size and the CRC of every other file. No pickle anywhere.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from thinwire.errors import UserError, may_not_read
from thinwire.files import read_json
from thinwire.runs.tensor_file import save_tensors

CHECKSUMS = "checksums.json"
STATE = "state.json"
FORMAT = 1

TensorGroups = Mapping[str, Mapping[str, torch.Tensor]]


class Damaged(Exception):
    """The folder is not what was saved; the message says what differs."""


@dataclass(frozen=True)
class Checkpoint:
    """One step that was found to be whole; its state is in memory, its tensors are read on demand.

    Attributes:
        step: its number.
        state: the state that was saved with it, after a round trip through JSON.
        path: its folder.
    """

    step: int
    state: dict[str, Any]
    path: Path

    def open(self, stem: str) -> dict[str, torch.Tensor]:
        """The tensors of `<stem>.safetensors`, by name, on the CPU."""
        file = self.path / f"{stem}.safetensors"
        if not file.exists():
            stems = ", ".join(sorted(f.stem for f in self.path.glob("*.safetensors")))
            raise UserError(f"{self.path} holds no {stem!r} tensors, only: {stems or 'none'}.")
        return load_file(file)


def write_step(
    folder: Path, step: int, tensors: TensorGroups, state_json: str, *, best: bool
) -> None:
    """Create the folder, write all files of a step into it, and flush them to the disk.

    Raises:
        OSError: the system refuses.
    """
    folder.mkdir(parents=True)
    for stem, group in tensors.items():
        save_tensors(group, folder / f"{stem}.safetensors")
    (folder / STATE).write_text(state_json, encoding="utf-8")
    files = {file.name: checksum(file) for file in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "step": step, "best": best, "files": files}
    (folder / CHECKSUMS).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        flush(path)


def read_step(folder: Path, step: int) -> Checkpoint:
    """Check every file of a step, and open it.

    Raises:
        Damaged: a file is missing, differs from what was saved, or is not in the list.
        UserError: a file may not be read.
    """
    files = read_manifest(folder, step)["files"]
    unlisted = {file.name for file in folder.glob("*.safetensors")} - set(files)
    if unlisted:
        raise Damaged(f"{CHECKSUMS} does not list {', '.join(sorted(unlisted))}")
    for name, expected in files.items():
        try:
            found = checksum(folder / name)
        except PermissionError:
            raise may_not_read(folder / name) from None
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from None
        if found != expected:
            raise Damaged(f"{name} is {found}, saved was {expected}")
    try:
        state = read_json(folder / STATE)
    except ValueError:
        raise Damaged(f"{STATE} is no JSON of ours") from None
    return Checkpoint(step, state, folder)


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """Read `checksums.json`: whether the step is `best`, and the checksums of its `files`.

    Raises:
        Damaged: it is missing, or is not that of this step.
        UserError: it may not be read.
    """
    try:
        manifest = read_json(folder / CHECKSUMS)
        if manifest["format"] == FORMAT and manifest["step"] == step and STATE in manifest["files"]:
            return {"best": bool(manifest["best"]), "files": dict(manifest["files"])}
    except PermissionError:
        raise may_not_read(folder / CHECKSUMS) from None
    except OSError as error:
        raise Damaged(f"{CHECKSUMS} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise Damaged(f"{CHECKSUMS} is not one of step {step}")


def checksum(file: Path) -> str:
    """Size and CRC-32 of a file.

    It has to notice a failing disk, not a forger, so speed decides: CRC-32 runs at 6.6 GB/s,
    SHA-256 at 1.9 (with the CPU's SHA instructions), BLAKE2b at 1.2 (all measured). A file that was
    just written is read from the page cache.
    """
    crc, size, buffer = 0, 0, memoryview(bytearray(1 << 20))
    with open(file, "rb", buffering=0) as stream:
        while num_read := stream.readinto(buffer):
            crc, size = zlib.crc32(buffer[:num_read], crc), size + num_read
    return f"{size} bytes with CRC {crc:08x}"


def flush(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
