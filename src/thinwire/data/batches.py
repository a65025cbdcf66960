"""Endless batches from a token stream; reading can be resumed bit for bit.

Everything follows from the seed, the number of the epoch and the number of the step in the epoch,
so these two numbers are the whole state. N workers with b sequences each read the same N * b
streams as one worker with N * b sequences: stream j belongs to worker j // b.

Context `text`: the split is cut into N * b equal streams that are read in parallel, `length` tokens
per step. Each epoch starts at another position of the text, so the cuts are elsewhere, and so are
the few tokens that do not fill a step.

Context `line`: the state is reset at every line. The lines are shuffled; pools of them are sorted
by length and cut into groups of N * b lines, so that neighbours have similar lengths; the groups of
a pool are shuffled. When the line of a stream has ended, the stream takes the next line in that
order. A line longer than `length` tokens takes several steps, with the state carried over.

Shapes: B sequences of this worker, T tokens per sequence, P tokens before them, S = N * b streams;
L lines, W windows (the tokens that one stream reads in one step), G steps of the epoch.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thinwire.data.config import DataConfig
from thinwire.errors import UserError
from thinwire.seeds import numpy_generator

NO_TARGET = -1
NO_TOKEN = -1
GROUPS_A_POOL = 64

Ids = npt.NDArray[np.unsignedinteger[Any]]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One step of one worker."""

    inputs_BT: torch.Tensor
    """int64; the token before each target; end-of-line where the state of a sequence is reset."""

    targets_BT: torch.Tensor
    """int64; the tokens to predict; `NO_TARGET` is padding."""

    fresh_B: torch.Tensor | None
    """bool; True: reset the state of this sequence. None: all states are carried over."""

    num_targets: int
    """Number of targets of this step, over all workers."""

    before_BP: torch.Tensor | None = None
    """int64; the tokens before the inputs; `NO_TOKEN` before the start of a sequence. None: they
    were not asked for."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if device.type == "cpu":
            return self
        fresh_B = None if self.fresh_B is None else self.fresh_B.to(device)
        before_BP = None if self.before_BP is None else self.before_BP.to(device)
        inputs_BT, targets_BT = self.inputs_BT.to(device), self.targets_BT.to(device)
        return Batch(inputs_BT, targets_BT, fresh_B, self.num_targets, before_BP)


class Batches:
    """Endless iterator over the batches of one worker.

    Args:
        ids: the token ids of the training split.
        config: batch, length and context.
        seed: determines where epochs start, or the order of the lines.
        eos_id: the end-of-line token.
        worker: the number of this worker, from 0.
        num_workers: number of workers that read the text together.
        num_before: number of tokens before its inputs that a batch has as `before_BP`.
    """

    def __init__(
        self,
        ids: Ids,
        config: DataConfig,
        *,
        seed: int,
        eos_id: int,
        worker: int = 0,
        num_workers: int = 1,
        num_before: int = 0,
    ) -> None:
        num_streams = num_workers * config.batch
        cutter = _Text if config.context == "text" else _Lines
        self._cut: _Cut = cutter(ids, num_streams, config.length, seed, eos_id, num_before)
        self._rows = slice(worker * config.batch, (worker + 1) * config.batch)
        self._state = {"epoch": 0, "step": 0, "streams": num_streams, "length": config.length}
        self._cut.start(0)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        batch = self._cut.batch(self._state["step"], self._rows)
        self._state["step"] += 1
        if self._state["step"] == self._cut.num_steps:
            self._state["epoch"] += 1
            self._state["step"] = 0
            self._cut.start(self._state["epoch"])
        return batch

    @property
    def epoch(self) -> float:
        """Number of epochs read so far, with a fraction."""
        return self._state["epoch"] + self._state["step"] / self._cut.num_steps

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of the current epoch; it varies in context `line` only."""
        return self._cut.num_steps

    def state_dict(self) -> dict[str, int]:
        """The position of the iterator: a few numbers, the same for all workers."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> bool:
        """Continue from a `state_dict()` of the same split, seed and length.

        With the same number of streams, it continues with the next token. With another number of
        streams, for instance after a change of the number of workers, it continues at the same
        fraction of the epoch. The streams are then cut elsewhere, so in this epoch some text is
        read twice and some not at all.

        Returns:
            Whether the number of streams is the same.
        """
        if state["length"] != self._state["length"]:
            raise UserError(
                f"the saved run had {state['length']} as data.length, and this one has "
                f"{self._state['length']}: a run can only go on with the same number"
            )
        epoch, step, streams = int(state["epoch"]), int(state["step"]), self._state["streams"]
        same_streams = state["streams"] == streams
        self._cut.start(epoch)
        if not same_streams:
            step = min(step * state["streams"] // streams, self._cut.num_steps - 1)
        self._state |= {"epoch": epoch, "step": step}
        return same_streams


class _Cut(ABC):
    """A way to cut one epoch into steps."""

    num_steps: int

    @abstractmethod
    def start(self, epoch: int) -> None:
        """Compute the steps of this epoch, and set `num_steps`."""

    @abstractmethod
    def batch(self, step: int, rows: slice) -> Batch:
        """These rows (of S) of one step of the epoch."""


class _Text(_Cut):
    def __init__(
        self, ids: Ids, num_streams: int, length: int, seed: int, eos_id: int, num_before: int
    ) -> None:
        self._ids, self._length, self._seed, self._eos_id = ids, length, seed, eos_id
        self._num_before = num_before
        stream_tokens = len(ids) // num_streams
        self.num_steps = stream_tokens // length
        if self.num_steps == 0:
            raise UserError(
                f"the training text has {len(ids):,} tokens, too few for one step of "
                f"{num_streams} sequences of {length} tokens ({num_streams * length:,}): "
                "give it more text, or make data.batch or data.length smaller"
            )
        self._starts_S = np.arange(num_streams, dtype=np.int64) * stream_tokens

    def start(self, epoch: int) -> None:
        self._offset = int(
            numpy_generator(self._seed, "batches", "offset", epoch).integers(len(self._ids))
        )

    def batch(self, step: int, rows: slice) -> Batch:
        P, window = self._num_before, np.arange(-1 - self._num_before, self._length)
        first_B = self._offset + self._starts_S[rows]
        in_stream = step * self._length + window
        tokens = self._ids[(first_B[:, None] + in_stream) % len(self._ids)].astype(np.int64)
        tokens[:, in_stream == -1] = self._eos_id
        tokens[:, in_stream < -1] = NO_TOKEN
        fresh_B = torch.ones(len(tokens), dtype=torch.bool) if step == 0 else None
        tokens_BT = torch.from_numpy(tokens)
        num_targets = len(self._starts_S) * self._length
        return Batch(
            tokens_BT[:, P:-1].contiguous(),
            tokens_BT[:, P + 1 :].contiguous(),
            fresh_B,
            num_targets,
            tokens_BT[:, :P].contiguous() if P else None,
        )


class _Lines(_Cut):
    def __init__(
        self, ids: Ids, num_streams: int, length: int, seed: int, eos_id: int, num_before: int
    ) -> None:
        self._ids, self._seed, self._eos_id = ids, seed, eos_id
        self._num_streams, self._num_before = num_streams, num_before
        ends_L = _line_ends(ids, eos_id)
        if len(ends_L) < num_streams:
            raise UserError(
                f"the training text has {len(ends_L):,} lines, too few for one step of "
                f"{num_streams} sequences: give it more text, or make data.batch smaller"
            )
        self._lengths_L = np.diff(ends_L, prepend=0)
        self._windows_L = -(-self._lengths_L // length)
        self._first_window_L = np.cumsum(self._windows_L) - self._windows_L
        # Windows are adjacent in the text, so their starts give their lengths too. An empty window
        # at the end is for streams that have nothing left to read.
        num_windows = int(self._windows_L.sum())
        line_of_W = np.repeat(np.arange(len(ends_L)), self._windows_L)
        in_line_W = np.arange(num_windows) - self._first_window_L[line_of_W]
        starts_L = ends_L - self._lengths_L
        self._starts_W = np.append(starts_L[line_of_W] + in_line_W * length, [len(ids)] * 2)

    def start(self, epoch: int) -> None:
        order_L = self._shuffled(numpy_generator(self._seed, "batches", "lines", epoch))
        windows_L = self._windows_L[order_L]
        free = [(0, stream) for stream in range(self._num_streams)]  # a heap: (step, stream)
        begin_L, stream_L = np.empty_like(order_L), np.empty_like(order_L)
        for line, windows in enumerate(windows_L.tolist()):
            step, stream = free[0]
            begin_L[line], stream_L[line] = step, stream
            heapq.heapreplace(free, (step + windows, stream))
        self.num_steps = max(step for step, _ in free)

        nothing = len(self._starts_W) - 2
        self._window_GS = np.full((self.num_steps, self._num_streams), nothing)
        line_of_W = np.repeat(np.arange(len(order_L)), windows_L)
        in_line_W = np.arange(nothing) - (np.cumsum(windows_L) - windows_L)[line_of_W]
        self._window_GS[begin_L[line_of_W] + in_line_W, stream_L[line_of_W]] = (
            self._first_window_L[order_L][line_of_W] + in_line_W
        )

    def batch(self, step: int, rows: slice) -> Batch:
        window_S = self._window_GS[step]
        length_S = self._starts_W[window_S + 1] - self._starts_W[window_S]
        start_B, length_B = self._starts_W[window_S[rows]], length_S[rows]
        within_T = np.arange(int(length_S.max()))

        positions_BT = start_B[:, None] + within_T
        has_target_BT = within_T < length_B[:, None]
        targets_BT = self._ids[positions_BT.clip(max=len(self._ids) - 1)].astype(np.int64)
        # The token before a window is an end-of-line exactly where a line begins.
        before_B = np.where(start_B > 0, self._ids[start_B - 1], self._eos_id)
        inputs_BT = np.concatenate((before_B[:, None], targets_BT[:, :-1]), axis=1)
        return Batch(
            torch.from_numpy(np.where(has_target_BT, inputs_BT, self._eos_id)),
            torch.from_numpy(np.where(has_target_BT, targets_BT, NO_TARGET)),
            torch.from_numpy(before_B == self._eos_id),
            int(length_S.sum()),
            torch.from_numpy(self._before(start_B)) if self._num_before else None,
        )

    def _before(self, start_B: Positions) -> Positions:
        """The tokens of the same line before the one before each start, [B, P]."""
        position_BQ = start_B[:, None] + np.arange(-1 - self._num_before, 0)
        tokens_BQ = self._ids[position_BQ.clip(min=0, max=len(self._ids) - 1)].astype(np.int64)
        tokens_BQ[position_BQ < 0] = self._eos_id
        is_end_BQ = tokens_BQ == self._eos_id
        # Tokens before an end-of-line belong to another line.
        num_ends_BQ = is_end_BQ[:, ::-1].cumsum(axis=1)[:, ::-1] - is_end_BQ
        before_BP: Positions = np.where(num_ends_BQ > 0, NO_TOKEN, tokens_BQ)[:, :-1]
        return before_BP

    def _shuffled(self, generator: np.random.Generator) -> Positions:
        """The lines in the order of the epoch, [L]; neighbours have similar lengths."""
        order_L = generator.permutation(len(self._lengths_L))
        pool = GROUPS_A_POOL * self._num_streams
        for first in range(0, len(order_L), pool):
            lines = order_L[first : first + pool]
            lines = lines[np.argsort(self._lengths_L[lines], kind="stable")]
            whole = len(lines) - len(lines) % self._num_streams
            groups = generator.permutation(lines[:whole].reshape(-1, self._num_streams))
            order_L[first : first + pool] = np.concatenate((groups.ravel(), lines[whole:]))
        return order_L


def _line_ends(ids: Ids, eos_id: int, piece: int = 1 << 22) -> Positions:
    """The position after each line's end, [L]; tokens after the last end-of-line are a line too."""
    ends = [
        np.flatnonzero(ids[first : first + piece] == eos_id) + first + 1
        for first in range(0, len(ids), piece)
    ]
    if len(ids) and ids[-1] != eos_id:
        ends.append(np.array([len(ids)]))
    return np.concatenate(ends, dtype=np.int64) if ends else np.empty(0, np.int64)
