"""Checkpoints that a crash, a kill or a full disk cannot spoil.

A run folder holds `step-N/` folders. Saving goes in four phases:

1. **Write** everything into `step-N.tmp`: one safetensors file for each group of tensors,
   `state.json`, and last `checksums.json`, which lists the size and the CRC of every other file.
2. **Flush** each file and the folder to the disk.
3. **Rename** the folder to `step-N`, and flush its parent: from here on the step exists.
4. **Prune**: the newest few steps stay, and the best one.

So a folder named `step-N` is complete unless the disk damaged it later; loading checks that and
falls back, aloud, on the newest step that is whole. No pickle anywhere.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from thinwire.console import warn
from thinwire.errors import UserError, may_not_read
from thinwire.files import read_json

# Up to here a copy of the tensors is cheaper than a pause of the training; above it memory counts.
BACKGROUND_MAX_bytes = 64 << 20

CHECKSUMS = "checksums.json"
STATE = "state.json"
FORMAT = 1

TensorGroups = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """One whole step: its small state at hand, its tensors on demand."""

    step: int
    state: dict[str, Any]
    """What `save` was given, after a round trip through JSON."""
    path: Path

    def open(self, stem: str) -> dict[str, torch.Tensor]:
        """The tensors of `<stem>.safetensors`, by name, on the CPU."""
        file = self.path / f"{stem}.safetensors"
        if not file.exists():
            stems = ", ".join(sorted(f.stem for f in self.path.glob("*.safetensors")))
            raise UserError(f"{self.path} holds no {stem!r} tensors, only: {stems or 'none'}.")
        return load_file(file)


class Checkpoints:
    """The `step-N/` folders of one run; one process writes, any number may read.

    `keep` newest steps stay on disk, and the newest step that was saved as the best so far.
    """

    def __init__(self, run: Path, keep: int = 2) -> None:
        if keep < 1:
            raise UserError(f"At least 1 checkpoint has to be kept, and {keep} was asked for.")
        self.run = Path(run)
        self.keep = keep
        self.in_background = True
        """Whether small checkpoints are written by a thread."""
        self._writer: Thread | None = None
        self._error: BaseException | None = None
        self._damaged: set[int] = set()

    # Saving

    def save(
        self, step: int, tensors: TensorGroups, state: Mapping[str, Any], *, best: bool = False
    ) -> None:
        """Store `tensors[stem][name]` and the JSON-able `state` as `step-N`, replacing one there.

        What is stored is the moment of the call: a small checkpoint is copied and written by a
        background thread, a large one, or all without `in_background`, before the call returns. One
        write is in flight at most; the error of an earlier one is raised here or by `wait`.
        `best` says that no step so far validated better; a step keeps that mark when it is saved
        again.
        """
        self.wait()
        state_json = json.dumps(dict(state), indent=1)
        num_bytes = sum(t.nbytes for group in tensors.values() for t in group.values())
        if num_bytes > BACKGROUND_MAX_bytes or not self.in_background:
            self._write(step, tensors, state_json, best, num_bytes)
            return
        copies = {
            stem: {name: _copy(t) for name, t in group.items()} for stem, group in tensors.items()
        }

        def write() -> None:
            try:
                self._write(step, copies, state_json, best, num_bytes)
            except BaseException as error:  # handed to the thread that trains
                self._error = error

        # Not a daemon: a process that ends by itself completes its last checkpoint first.
        self._writer = Thread(target=write, name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Return once nothing is being written; raise what went wrong meanwhile."""
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Return once nothing is being written, whatever has become of it."""
        self._join()

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write(
        self, step: int, tensors: TensorGroups, state_json: str, best: bool, num_bytes: int
    ) -> None:
        folder = self.run / f"step-{step}.tmp"
        try:
            self._clear_leftovers()
            best = best or self._is_best(step)
            folder.mkdir(parents=True)
            for stem, group in tensors.items():
                save_tensors(group, folder / f"{stem}.safetensors")
            (folder / STATE).write_text(state_json, encoding="utf-8")
            files = {file.name: _checksum(file) for file in sorted(folder.iterdir())}
            manifest = {"format": FORMAT, "step": step, "best": best, "files": files}
            (folder / CHECKSUMS).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for path in [*folder.iterdir(), folder]:
                _flush(path)
            self._put_in_place(folder, step)
            self._damaged.discard(step)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise self._sentence(step, num_bytes, error) from error
        self._prune(step)

    def _put_in_place(self, folder: Path, step: int) -> None:
        final, old = self.run / f"step-{step}", self.run / f"step-{step}.old"
        if final.exists():
            final.rename(old)  # a folder cannot be replaced at once; see _clear_leftovers
        folder.rename(final)
        _flush(self.run)
        shutil.rmtree(old, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        """Tidy up after a writer that was killed."""
        for old in self.run.glob("step-*.old"):
            if old.with_suffix("").exists():
                shutil.rmtree(old)
            else:  # killed between the two renames of _put_in_place
                old.rename(old.with_suffix(""))
        for leftover in self.run.glob("step-*.tmp"):
            shutil.rmtree(leftover)

    def _prune(self, step: int) -> None:
        """Drop what is old, and what lies ahead: steps of a future that this run has left.

        Ahead of the step just saved there can only be steps too damaged to resume from, or those
        of a run that was wound back; kept, they would pass for the newest.
        """
        steps = [s for s in self._whole() if s <= step]
        stay = {*steps[-self.keep :], self._best(steps)}
        for other in self._on_disk() - stay:
            leaving = self.run / f"step-{other}.tmp"  # so that a kill cannot leave half a step-N
            (self.run / f"step-{other}").rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)
            if other > step:
                self._warn(f"step {other} lay ahead of step {step}, now the newest: removed.")

    def _sentence(self, step: int, num_bytes: int, error: OSError) -> UserError:
        kept = f"what was saved before is kept (steps: {_listing(self._whole())})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self.run).free
            return UserError(
                f"The disk is full: step {step} needs {num_bytes / 1e6:.1f} MB in {self.run}, "
                f"where {free / 1e6:.1f} MB are free; {kept}."
            )
        return UserError(
            f"Step {step} could not be saved in {self.run} ({error.strerror}); {kept}."
        )

    # Loading

    @property
    def steps(self) -> list[int]:
        """The steps on disk, ascending, without those that were found to be damaged.

        Like everything that reads, it first lets a step that is being written arrive.
        """
        self._join()
        return self._whole()

    @property
    def newest(self) -> int | None:
        """The highest step."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The newest step that was saved as the best; None if no step was."""
        return self._best(self.steps)

    def _on_disk(self) -> set[int]:
        found = (re.fullmatch(r"step-(\d+)(\.old)?", path.name) for path in self.run.glob("step-*"))
        return {int(match[1]) for match in found if match}

    def _whole(self) -> list[int]:
        return sorted(self._on_disk() - self._damaged)

    def _best(self, steps: list[int]) -> int | None:
        return next((step for step in reversed(steps) if self._is_best(step)), None)

    def _is_best(self, step: int) -> bool:
        if step in self._damaged:
            return False
        try:
            return bool(_manifest(self._folder(step), step)["best"])
        except _Damaged:
            return False

    def load(self, step: int | Literal["best"] | None = None) -> Checkpoint:
        """A whole checkpoint: `step`, or the best one, or the newest.

        A damaged step is named on the console and passed over in favour of the newest whole one,
        unless it was asked for by its number. UserError if no step can be had.
        """
        self._join()
        steps = sorted(self._on_disk())
        if isinstance(step, int):
            return self._load_exactly(step, steps)
        if not steps:
            raise UserError(f"{self.run} holds no checkpoint.")
        for candidate in self._preference(steps, best_first=step == "best"):
            try:
                return self._load_whole(candidate)
            except _Damaged as damage:
                if candidate not in self._on_disk():
                    return self.load(step)  # not damaged: pruned meanwhile by the run that goes on
                self._warn(f"step {candidate} is damaged and passed over: {damage}.")
        raise UserError(
            f"{self.run} holds no whole checkpoint: all {len(steps)} found are damaged "
            f"(steps: {_listing(steps)})."
        )

    def load_best(self) -> Checkpoint | None:
        """The newest whole step that was saved as the best; None if there is none.

        Damaged ones are named on the console, and from then on are not the best.
        """
        while (step := self.best) is not None:
            try:
                return self._load_whole(step)
            except _Damaged as damage:
                self._warn(f"step {step}, the best, is damaged and passed over: {damage}.")
        return None

    def _load_exactly(self, step: int, steps: list[int]) -> Checkpoint:
        if step not in steps:
            raise UserError(f"{self.run} holds no step {step}, only: {_listing(steps)}.")
        try:
            return self._load_whole(step)
        except _Damaged as damage:
            others = _listing([s for s in steps if s != step])
            raise UserError(
                f"Step {step} in {self.run} is damaged: {damage}; other steps there: {others}."
            ) from None

    def _preference(self, steps: list[int], best_first: bool) -> Iterator[int]:
        best = self._best(steps) if best_first else None
        if best is not None:
            yield best
        yield from (step for step in reversed(steps) if step != best)

    def _warn(self, sentence: str) -> None:
        warn(f"in {self.run}, {sentence}")

    def _folder(self, step: int) -> Path:
        folder = self.run / f"step-{step}"
        return folder if folder.exists() else self.run / f"step-{step}.old"

    def _load_whole(self, step: int) -> Checkpoint:
        self._damaged.add(step)  # until it has shown to be whole
        try:
            loaded = self._load_checked(step)
        except UserError:  # it may not be read, which is no damage
            self._damaged.discard(step)
            raise
        self._damaged.discard(step)
        return loaded

    def _load_checked(self, step: int) -> Checkpoint:
        folder = self._folder(step)
        files = _manifest(folder, step)["files"]
        unlisted = {file.name for file in folder.glob("*.safetensors")} - set(files)
        if unlisted:
            raise _Damaged(f"{CHECKSUMS} does not list {', '.join(sorted(unlisted))}")
        for name, expected in files.items():
            try:
                found = _checksum(folder / name)
            except PermissionError:
                raise may_not_read(folder / name) from None
            except OSError as error:
                raise _Damaged(f"{name} cannot be read ({error.strerror})") from None
            if found != expected:
                raise _Damaged(f"{name} is {found}, saved was {expected}")
        try:
            state = read_json(folder / STATE)
        except ValueError:
            raise _Damaged(f"{STATE} is no JSON of ours") from None
        return Checkpoint(step, state, folder)


class _Damaged(Exception):
    """A step that is not what was saved; the message says where."""


def _manifest(folder: Path, step: int) -> dict[str, Any]:
    try:
        manifest = read_json(folder / CHECKSUMS)
        if manifest["format"] == FORMAT and manifest["step"] == step and STATE in manifest["files"]:
            return {"best": bool(manifest["best"]), "files": dict(manifest["files"])}
    except PermissionError:
        raise may_not_read(folder / CHECKSUMS) from None
    except OSError as error:
        raise _Damaged(f"{CHECKSUMS} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise _Damaged(f"{CHECKSUMS} is not one of step {step}")


def _checksum(file: Path) -> str:
    """Size and CRC-32 of a file.

    The foe is a disk, not a forger: CRC-32 runs at 6.6 GB/s here, SHA-256 at 1.9 (measured, with
    the CPU's SHA instructions), BLAKE2b at 1.2. A file just written is read from the page cache.
    """
    crc, size, buffer = 0, 0, memoryview(bytearray(1 << 20))
    with open(file, "rb", buffering=0) as stream:
        while num_read := stream.readinto(buffer):
            crc, size = zlib.crc32(buffer[:num_read], crc), size + num_read
    return f"{size} bytes with CRC {crc:08x}"


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def save_tensors(
    tensors: Mapping[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, readable for whom the umask says.

    `save_file` writes straight from the tensors' memory (1 GB saved: 0.3 MB more resident). It
    takes contiguous tensors only, each with memory of its own; those that are not are copied. It
    makes files of mode 0600; what the umask allows shows in a file that Python makes.

    Raises:
        OSError: the system refuses.
    """
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    seen: set[int] = set()
    writable: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        own = tensor.is_contiguous() and (address == 0 or address not in seen)
        writable[name] = tensor.detach() if own else _copy(tensor)
        seen.add(address)
    try:
        save_file(writable, file, metadata)
    except SafetensorError as error:  # its I/O errors carry the number in the text only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    file.chmod(mode)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _listing(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
