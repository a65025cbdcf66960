"""The messages between workers and servers.

Every message is one frame (`wire/frames.py`): a kind, numbers, parts.

    from a worker   content
    HELLO           its name, incarnation and versions: JSON
    PULL            the rows that it needs
    PUSH            the gradients of a step, and a report on it
    ALIVE           none: the worker still waits
    GOODBYE         its final account of the wire

    from a server
    WELCOME         the worker's slot, and all settings: JSON
    REFUSED         why the worker cannot join: a sentence
    ROWS            the rows of a pull that have changed
    WAIT            the answer takes longer, because the run evaluates or saves
    STOP            the run has ended: why
    UNKNOWN         none: the server does not know this worker, which must send HELLO
    TOO_OLD         a push was not applied: it came too late, or was refused

    from the first of several servers to the others, and back
    LEAD, LOAD, COLLECT, END, and STATUS, COLLECTED    (see `followers.py`)

An incarnation is a number that a worker draws each time it joins, so that messages of an earlier
incarnation are recognised. Within an incarnation, pulls and pushes are each numbered from 1.

P parameters, G groups of rows, R rows of a group, H of them newer, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thinwire.files import parse_json
from thinwire.parameter_server.fields import as_bytes, finite, whole
from thinwire.wire.frames import Frame, pack, unpack
from thinwire.wire.indices import decode_ids, encode_ids

PROTOCOL = 5
ABSENT = -1


class Kind(IntEnum):
    """The kinds of messages."""

    HELLO = 1
    PULL = 2
    PUSH = 3
    ALIVE = 4
    GOODBYE = 5
    WELCOME = 17
    REFUSED = 18
    ROWS = 19
    WAIT = 20
    STOP = 21
    UNKNOWN = 22
    TOO_OLD = 23
    LEAD = 33
    LOAD = 34
    COLLECT = 35
    END = 36
    STATUS = 49
    COLLECTED = 50


@dataclass(frozen=True)
class Selection:
    """Which rows of which parameters a message is about.

    Attributes:
        group_of: for each parameter, in the model's order, its group of rows; `ABSENT`: none.
        ids: for each group the rows, int64, rising; None: every row.
    """

    group_of: tuple[int, ...]
    ids: tuple[Tensor | None, ...]

    def parts(self) -> list[Tensor]:
        """The groups as bytes; no bytes at all stand for every row."""
        nothing = torch.empty(0, dtype=torch.uint8)
        return [nothing if ids is None else encode_ids(ids) for ids in self.ids]

    @classmethod
    def read(
        cls, group_of: Sequence[float], parts: Sequence[Tensor], num_rows: Sequence[int]
    ) -> Selection:
        """The selection of such numbers and parts; the p-th parameter has `num_rows[p]` rows.

        Raises:
            ValueError: they are none.
        """
        groups = tuple(whole(g, least=ABSENT) for g in group_of)
        if len(groups) != len(num_rows) or max(groups, default=ABSENT) >= len(parts):
            raise ValueError(
                f"{len(groups)} parameters in {len(parts)} groups, not {len(num_rows)}"
            )
        ids = tuple(decode_ids(part) if len(part) else None for part in parts)
        for group, rows in zip(groups, num_rows, strict=True):
            named = ids[group] if group != ABSENT else None
            if named is not None and len(named):
                rising = bool((named.diff() > 0).all())
                if not rising or int(named[0]) < 0 or int(named[-1]) >= rows:
                    raise ValueError(f"these are no rows of a parameter that has {rows}")
        return cls(groups, ids)

    def present(self) -> list[tuple[int, int]]:
        """(parameter, group) of every parameter that the message is about."""
        return [(p, g) for p, g in enumerate(self.group_of) if g != ABSENT]


class Position(NamedTuple):
    """How far a slot has read its part of the text.

    `epoch` and `step` are those of `Batches`; `steps` counts all steps of the slot, and `epochs`
    is the same in passes over the text.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    epochs: float = 0.0


class WireAccount(NamedTuple):
    """What a worker has waited for the wire, sent and received since it joined."""

    waited_seconds: float = 0.0
    bytes_sent: float = 0.0
    bytes_received: float = 0.0


class Report(NamedTuple):
    """What a worker says about a step besides its gradients: loss in nats a token, norm."""

    loss: float
    norm: float
    num_targets: int
    position: Position
    wire: WireAccount

    def numbers(self) -> list[float]:
        """As numbers of a frame."""
        return [self.loss, self.norm, self.num_targets, *self.position, *self.wire]

    @classmethod
    def read(cls, numbers: Sequence[float]) -> Report:
        """The report of such numbers; loss and norm may be anything."""
        loss, norm, targets, epoch, step, steps, epochs, *wire = numbers
        position = Position(whole(epoch), whole(step), whole(steps), finite(epochs))
        return cls(loss, norm, whole(targets), position, WireAccount(*map(finite, wire)))


REPORT_NUMBERS = 3 + len(Position._fields) + len(WireAccount._fields)
PULL_NUMBERS = 4
ROWS_NUMBERS = 5
PUSH_NUMBERS = 5 + REPORT_NUMBERS


@dataclass(frozen=True)
class Pull:
    """A worker needs rows.

    Attributes:
        incarnation: who.
        number: of this pull.
        held: the pull whose answer was the last to arrive; 0: none has. Where it is not the last
            that the server gave, the server knows no more what this worker holds.
        everything: all rows of all parameters are sent, changed or not.
        selection: the rows.
    """

    incarnation: int
    number: int
    held: int
    everything: bool
    selection: Selection

    def pack(self) -> Tensor:
        """As bytes; `pull_bytes` says how many."""
        numbers = (self.incarnation, self.number, self.held, self.everything)
        groups = self.selection.group_of
        return pack(Frame(Kind.PULL, (*numbers, *groups), tuple(self.selection.parts())))

    @classmethod
    def read(cls, frame: Frame, num_rows: Sequence[int]) -> Pull:
        """The pull that a frame is."""
        incarnation, number, held, everything = map(whole, _some(frame, PULL_NUMBERS))
        selection = Selection.read(frame.numbers[PULL_NUMBERS:], frame.parts, num_rows)
        return cls(incarnation, number, held, bool(everything), selection)


@dataclass(frozen=True)
class Rows:
    """A server's answer to a pull.

    Attributes:
        incarnation: whom it is for.
        number: of the pull.
        version: how many updates the server had made.
        factor: what learning rates are multiplied by at present.
        whole: whether blocks are sent whole where, else, differences are (`parameter_codec.py`).
        masks: for each group which of its rows are sent, a bit each; no bytes: all.
        values: for each parameter of the selection, the rows sent, encoded.
    """

    incarnation: int
    number: int
    version: int
    factor: float
    whole: bool
    masks: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def pack(self) -> Tensor:
        """As bytes; `rows_bytes` says how many."""
        numbers = (self.incarnation, self.number, self.version, self.factor, self.whole)
        return pack(Frame(Kind.ROWS, numbers, (*self.masks, *self.values)))

    @classmethod
    def read(cls, frame: Frame, num_groups: int) -> Rows:
        """The answer that a frame is."""
        incarnation, number, version, factor, is_whole = _some(frame, ROWS_NUMBERS)
        masks, values = frame.parts[:num_groups], frame.parts[num_groups:]
        numbers = whole(incarnation), whole(number), whole(version)
        return cls(*numbers, factor, bool(whole(is_whole)), masks, values)


@dataclass(frozen=True)
class Push:
    """A worker has computed the gradients of a step.

    Attributes:
        incarnation: who.
        number: of this push.
        pull: the pull whose rows the step has read.
        everything: the gradients of all rows are sent, and those of `selection` count.
        factor: what the first server multiplied learning rates by when it answered that pull.
        report: about the step.
        selection: the rows.
        values: for each parameter of the selection, its gradients, encoded.
    """

    incarnation: int
    number: int
    pull: int
    everything: bool
    factor: float
    report: Report
    selection: Selection
    values: tuple[Tensor, ...]

    def pack(self) -> Tensor:
        """As bytes; `push_bytes` says how many."""
        about = (self.incarnation, self.number, self.pull, self.everything, self.factor)
        numbers = (*about, *self.report.numbers(), *self.selection.group_of)
        return pack(Frame(Kind.PUSH, numbers, (*self.selection.parts(), *self.values)))

    @classmethod
    def read(cls, frame: Frame, num_rows: Sequence[int]) -> Push:
        """The push that a frame is."""
        incarnation, number, pull, everything, factor, *report = _some(frame, PUSH_NUMBERS)
        groups = frame.numbers[PUSH_NUMBERS:]
        num_groups = len(frame.parts) - sum(group != ABSENT for group in groups)
        if num_groups < 0:
            raise ValueError(f"{len(frame.parts)} parts are too few for a push")
        return cls(
            whole(incarnation),
            whole(number),
            whole(pull),
            bool(whole(everything)),
            factor,
            Report.read(report),
            Selection.read(groups, frame.parts[:num_groups], num_rows),
            frame.parts[num_groups:],
        )


# Small messages


def small_message(kind: Kind, *numbers: float, text: str | None = None) -> Tensor:
    """A message of numbers and, perhaps, a text."""
    parts = () if text is None else (as_bytes(text),)
    return pack(Frame(kind, tuple(map(float, numbers)), parts))


def json_message(kind: Kind, content: Mapping[str, Any], parts: Sequence[Tensor] = ()) -> Tensor:
    """A message of JSON, and perhaps parts that it describes."""
    return pack(Frame(kind, (), (as_bytes(json.dumps(dict(content))), *parts)))


def read_message(data: Tensor) -> tuple[Kind, Frame]:
    """A message's kind and content.

    Raises:
        ValueError: these bytes are no message.
    """
    frame = unpack(data)
    return Kind(frame.kind), frame


def has_failed(stop: Frame) -> bool:
    """Whether a run that a STOP ends has failed.

    Raises:
        ValueError: it does not say.
    """
    return bool(_some(stop, 1)[0])


def text_of(frame: Frame) -> str:
    """The text of a message.

    Raises:
        ValueError: it has none.
    """
    if not frame.parts:
        raise ValueError("a message without its text")
    return bytes(frame.parts[0].numpy()).decode()


def json_of(frame: Frame) -> dict[str, Any]:
    """The JSON of a message.

    Raises:
        ValueError: it has none.
    """
    found = parse_json(text_of(frame))
    if not isinstance(found, dict):
        raise ValueError("a message whose JSON is no object")
    return found


def incarnation_of(frame: Frame) -> int:
    """Whom a message is from, or for: its first number.

    Raises:
        ValueError: it has none.
    """
    return whole(_some(frame, 1)[0])


def _some(frame: Frame, count: int) -> tuple[float, ...]:
    if len(frame.numbers) < count:
        raise ValueError(f"a message with {len(frame.numbers)} numbers, which needs {count}")
    return frame.numbers[:count]
