"""Tensors through a codec and over a collective: summed where they lie alike, gathered where not.

Each worker is given one W-th of all workers' numbers, adds them up in fp32, in the order of the
ranks, and gives the sums to all; so W workers send what a ring all-reduce does, in two messages
instead of 2 (W - 1) one after the other. Sums of int4 go in int8, for they are rounded once for
all.

W workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TypeVar

import torch
from torch import Size, Tensor

from thinwire.exchange.contract import Traffic
from thinwire.seeds import derive
from thinwire.transport.collective import Collective, Pending
from thinwire.wire.codecs import Codec, Scaled, make_codec

T = TypeVar("T")
SUMS_CODECS = {"int4": "int8"}
"""In which sums travel, where it is not the codec of what is summed."""


class CodedCollective:
    """A collective that speaks in coded tensors and counts the seconds spent in waiting.

    Args:
        collective: all workers of the run.
        codec: by its name.
        seed: of stochastic rounding.
    """

    def __init__(self, collective: Collective, codec: str, seed: int) -> None:
        self.collective = collective
        self.waited_seconds = 0.0
        self._codec, self._sums_codec = make_codec(codec), sums_codec(codec)
        self._seed, self._step, self._num_messages = seed, 0, 0

    def at_step(self, step: int) -> None:
        """Number the messages of each step afresh, so that a resumed run rounds as any other."""
        if step != self._step:
            self._step, self._num_messages = step, 0

    def sum(self, tensors: Sequence[Tensor]) -> Pending[list[Tensor]]:
        """The sum over all workers of each tensor, which has the same shape on each."""
        shapes, W = [tensor.shape for tensor in tensors], self.collective.size
        if isinstance(self._codec, Scaled):  # rows have to stay together
            seed = self._next_seed()
            pieces = [self._codec.encode_pieces(tensor, W, seed) for tensor in tensors]
            return self._sum([joined(part) for part in zip(*pieces, strict=True)], shapes)
        flat = Size((sum(shape.numel() for shape in shapes),))
        sizes = [self.num_bytes(piece_shapes([flat], W, rank)) for rank in range(W)]
        return _Cut(self._sum(self.encode(tensors).split(sizes), [flat]), shapes)

    def _sum(self, parts: Sequence[Tensor], shapes: Sequence[Size]) -> Pending[list[Tensor]]:
        """Of tensors of these shapes, of which each worker adds up one of the encoded parts."""
        W, seed = self.collective.size, self._next_seed()
        shapes_of = [piece_shapes(shapes, W, rank) for rank in range(W)]

        def merge(messages: Sequence[Tensor]) -> Tensor:
            own = shapes_of[self.collective.rank]
            totals, *others = (decoded(self._codec, message, own) for message in messages)
            for other in others:
                for total, values in zip(totals, other, strict=True):
                    total += values
            return encoded(self._sums_codec, totals, seed)

        sizes = [coded_bytes(self._sums_codec, part) for part in shapes_of]
        merged = self.collective.merge(parts, merge, sizes)
        return _Joined(merged, self._sums_codec, shapes, shapes_of)

    def encode(self, tensors: Sequence[Tensor]) -> Tensor:
        """Some tensors as bytes, one after the other; `decode` takes them."""
        return encoded(self._codec, tensors, self._next_seed())

    def num_bytes(self, shapes: Sequence[Size]) -> int:
        """The bytes of encoded tensors of these shapes."""
        return coded_bytes(self._codec, shapes)

    def decode(self, message: Tensor, shapes: Sequence[Size]) -> list[Tensor]:
        """The tensors that these bytes are, fp32.

        Raises:
            ValueError: they are more or fewer.
        """
        return decoded(self._codec, message, shapes)

    def _next_seed(self) -> int:
        """Of the next message's rounding."""
        number, self._num_messages = self._num_messages, self._num_messages + 1
        return derive(self._seed, "rounding", f"{self.collective.rank}/{number}", self._step)

    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """The sum of each number over all workers, in float64 whatever the codec."""
        message = torch.tensor(list(numbers), dtype=torch.float64).view(torch.uint8)
        lengths = [len(message)] * self.collective.size
        return _Numbers(self.collective.all_gather(message, lambda: lengths), self)

    def traffic(self, dense_bytes: float) -> Traffic:
        """What this worker has sent so far; `dense_bytes` is what it would have sent."""
        return Traffic(
            bytes_sent=self.collective.meter.sent,
            bytes_received=self.collective.meter.received,
            bytes_dense=dense_bytes,
            exchange_seconds=self.waited_seconds,
            wire_seconds=self.collective.busy_seconds,
        )

    def wait(self, pending: Pending[T]) -> T:
        """What is pending; the time it takes is counted."""
        began = perf_counter()
        try:
            return pending.wait()
        finally:
            self.waited_seconds += perf_counter() - began


def encoded(codec: Codec, tensors: Sequence[Tensor], seed: int) -> Tensor:
    """Some tensors as bytes, one after the other; what is rounded by chance, by this seed."""
    return joined([codec.encode(tensor, seed) for tensor in tensors])


def decoded(codec: Codec, message: Tensor, shapes: Sequence[Size]) -> list[Tensor]:
    """The tensors that these bytes are, fp32.

    Raises:
        ValueError: they are more or fewer.
    """
    sizes = [codec.num_bytes(shape) for shape in shapes]
    if sum(sizes) != len(message):
        raise ValueError(f"{sum(sizes)} bytes are expected, and {len(message)} have come")
    return [codec.decode(p, shape) for p, shape in zip(message.split(sizes), shapes, strict=True)]


def sums_codec(codec: str) -> Codec:
    """In which the sums travel of what this codec has carried."""
    return make_codec(SUMS_CODECS.get(codec, codec))


def coded_bytes(codec: Codec, shapes: Sequence[Sequence[int]]) -> int:
    """What tensors of these shapes take."""
    return sum(map(codec.num_bytes, shapes))


def piece_shapes(shapes: Sequence[Sequence[int]], num_workers: int, rank: int) -> list[Size]:
    """Of tensors of these shapes, what a worker adds up: some rows or, of a vector, some numbers.

    The first workers have one more where it does not come out even.
    """
    found = []
    for shape in shapes:
        num_rows, *row = shape if len(shape) > 1 else (Size(shape).numel(),)
        found.append(Size((num_rows // num_workers + (rank < num_rows % num_workers), *row)))
    return found


def joined(messages: Sequence[Tensor]) -> Tensor:
    """Byte strings one after the other; a single one as it is."""
    if len(messages) == 1:
        return messages[0]
    return torch.cat(list(messages)) if messages else torch.empty(0, dtype=torch.uint8)


class _Numbers(Pending[list[float]]):
    def __init__(self, gathered: Pending[list[Tensor]], coded: CodedCollective) -> None:
        self._gathered, self._coded = gathered, coded

    def wait(self) -> list[float]:
        messages = self._coded.wait(self._gathered)
        numbers_of = [message.view(torch.float64).tolist() for message in messages]
        return [sum(numbers) for numbers in zip(*numbers_of, strict=True)]


class _Cut(Pending[list[Tensor]]):
    """A flat sum, cut into tensors of the shapes that went into it."""

    def __init__(self, flat: Pending[list[Tensor]], shapes: Sequence[Size]) -> None:
        self._flat, self._shapes = flat, shapes

    def wait(self) -> list[Tensor]:
        (flat,) = self._flat.wait()
        pieces = flat.split([shape.numel() for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]


class _Joined(Pending[list[Tensor]]):
    """Sums of which every worker has made a part, put together."""

    def __init__(
        self,
        merged: Pending[list[Tensor]],
        codec: Codec,
        shapes: Sequence[Size],
        shapes_of: Sequence[Sequence[Size]],
    ) -> None:
        self._merged, self._codec, self._shapes, self._shapes_of = merged, codec, shapes, shapes_of

    def wait(self) -> list[Tensor]:
        parts = [
            decoded(self._codec, message, shapes)
            for message, shapes in zip(self._merged.wait(), self._shapes_of, strict=True)
        ]
        joined_up = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return [whole.view(shape) for whole, shape in zip(joined_up, self._shapes, strict=True)]
