"""Checkpoints that a crash, a kill or a full disk cannot spoil.

A run folder holds `step-N/` folders. Saving goes in four phases:

1. **Write** all files into `step-N.tmp`; `checksums.json`, which lists the others, comes last.
2. **Flush** each file and the folder to the disk.
3. **Rename** the folder to `step-N`, and flush its parent: from now on the step exists.
4. **Prune**: keep the newest few steps and the best one.

So a folder named `step-N` is complete unless the disk damaged it later. Loading checks that; if a
step is damaged, it warns and loads the newest step that is whole. `step_folder` has phases 1 and 2
and the check.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from thinwire.console import warn
from thinwire.errors import UserError
from thinwire.runs.step_folder import (
    Checkpoint,
    Damaged,
    TensorGroups,
    flush,
    read_manifest,
    read_step,
    write_step,
)
from thinwire.runs.tensor_file import copy_to_cpu

# Up to here a copy of the tensors is cheaper than a pause of the training; above it memory counts.
BACKGROUND_MAX_bytes = 64 << 20


class Checkpoints:
    """The `step-N/` folders of one run; one process writes, any number may read.

    The `keep` newest steps stay on disk, and the newest step that was saved as the best so far.
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

        The values at the time of the call are stored. A small checkpoint is copied and written by a
        background thread. A large one is written before the call returns, and so is every one if
        `in_background` is false. At most one write is in flight; the error of an earlier one is
        raised here or by `wait`.

        Args:
            step: its number.
            tensors: the tensors, by group and by name.
            state: further values, for `state.json`.
            best: no step so far validated better. A step keeps that mark when it is saved again.
        """
        self.wait()
        state_json = json.dumps(dict(state), indent=1)
        num_bytes = sum(t.nbytes for group in tensors.values() for t in group.values())
        if num_bytes > BACKGROUND_MAX_bytes or not self.in_background:
            self._write(step, tensors, state_json, best, num_bytes)
            return
        copies = {
            stem: {name: copy_to_cpu(t) for name, t in group.items()}
            for stem, group in tensors.items()
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
        """Wait for the background write, and raise its error if it failed."""
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait for the background write, whether it fails or not."""
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
            write_step(folder, step, tensors, state_json, best=best)
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
        flush(self.run)
        shutil.rmtree(old, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        """Remove or restore what a writer that was killed has left."""
        for old in self.run.glob("step-*.old"):
            if old.with_suffix("").exists():
                shutil.rmtree(old)
            else:  # killed between the two renames of _put_in_place
                old.rename(old.with_suffix(""))
        for leftover in self.run.glob("step-*.tmp"):
            shutil.rmtree(leftover)

    def _prune(self, step: int) -> None:
        """Remove steps that are too old, and those with a higher number than the step just saved.

        A step with a higher number was too damaged to resume from, or the run was resumed from an
        earlier step. If it stayed, it would count as the newest.
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

        Like all methods that read, it first waits for a step that is being written.
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
            return bool(read_manifest(self._folder(step), step)["best"])
        except Damaged:
            return False

    def load(self, step: int | Literal["best"] | None = None) -> Checkpoint:
        """A whole checkpoint: `step`, or the best one, or the newest.

        If the best or the newest is damaged, a warning names it, and the newest whole one is
        loaded.

        Raises:
            UserError: the step that was asked for by its number is missing or damaged, or no step
                is whole.
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
            except Damaged as damage:
                if candidate not in self._on_disk():
                    return self.load(step)  # not damaged: the run has pruned it meanwhile
                self._warn(f"step {candidate} is damaged and passed over: {damage}.")
        raise UserError(
            f"{self.run} holds no whole checkpoint: all {len(steps)} found are damaged "
            f"(steps: {_listing(steps)})."
        )

    def load_best(self) -> Checkpoint | None:
        """The newest whole step that was saved as the best; None if there is none.

        A warning names each damaged one, which no longer counts as the best from then on.
        """
        while (step := self.best) is not None:
            try:
                return self._load_whole(step)
            except Damaged as damage:
                self._warn(f"step {step}, the best, is damaged and passed over: {damage}.")
        return None

    def _load_exactly(self, step: int, steps: list[int]) -> Checkpoint:
        if step not in steps:
            raise UserError(f"{self.run} holds no step {step}, only: {_listing(steps)}.")
        try:
            return self._load_whole(step)
        except Damaged as damage:
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
        self._damaged.add(step)  # until the check has passed
        try:
            loaded = read_step(self._folder(step), step)
        except UserError:  # a file may not be read: that is no damage
            self._damaged.discard(step)
            raise
        self._damaged.discard(step)
        return loaded


def _listing(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
