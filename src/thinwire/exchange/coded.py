"""A collective for tensors: encodes them with a codec, and sums or gathers them.

To sum, each worker receives its W-th part of every worker's numbers, adds them up in fp32 in the
order of the ranks, and sends the sums to all workers. So each worker sends as many bytes as in a
ring all-reduce, but in two rounds of messages instead of 2 (W - 1). With int4, the sums are sent as
int8, because every worker receives the same rounded sum and no error averages out.

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
from thinwire.wire.codecs import Codec, make_codec

T = TypeVar("T")
SUMS_CODECS = {"int4": "int8"}
"""The codec of the sums, where it differs from the codec of the summands."""


class CodedCollective:
    """A collective that sends encoded tensors and counts the seconds spent waiting.

    Args:
        collective: all workers of the run.
        codec: name of the codec.
        seed: seed of stochastic rounding.
    """

    def __init__(self, collective: Collective, codec: str, seed: int) -> None:
        self.collective = collective
        self.waited_seconds = 0.0
        self._codec, self._sums_codec = make_codec(codec), sums_codec(codec)
        self._seed, self._step, self._num_messages = seed, 0, 0

    def set_step(self, step: int) -> None:
        """Number messages anew at each step, so that a resumed run rounds like an unbroken one."""
        if step != self._step:
            self._step, self._num_messages = step, 0

    def sum(self, tensors: Sequence[Tensor]) -> Pending[list[Tensor]]:
        """The sum over all workers of each tensor, which has the same shape on each."""
        if self._codec.per_row or not tensors:
            return self._sum_pieces(tensors)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        return _Split(self._sum_pieces([flat]), [tensor.shape for tensor in tensors])

    def _sum_pieces(self, tensors: Sequence[Tensor]) -> Pending[list[Tensor]]:
        """The sums of these tensors; each worker adds up one piece of every tensor."""
        W, shapes = self.collective.size, [tensor.shape for tensor in tensors]
        seed, sums_seed = self._next_seed(), self._next_seed()
        pieces = [self._codec.encode_pieces(tensor, W, seed) for tensor in tensors]
        parts = [joined([of_tensor[rank] for of_tensor in pieces]) for rank in range(W)]
        shapes_of = [piece_shapes(shapes, W, rank) for rank in range(W)]

        def add_up(messages: Sequence[Tensor]) -> Tensor:
            own = shapes_of[self.collective.rank]
            totals, *others = (decoded(self._codec, message, own) for message in messages)
            for other in others:
                for total, values in zip(totals, other, strict=True):
                    total += values
            return encoded(self._sums_codec, totals, sums_seed)

        sizes = [coded_bytes(self._sums_codec, part) for part in shapes_of]
        summed = self.collective.all_reduce(parts, add_up, sizes)
        return _Joined(summed, self._sums_codec, shapes, shapes_of)

    def encode(self, tensors: Sequence[Tensor]) -> Tensor:
        """The bytes of all tensors, concatenated; `decode` reverses this."""
        return encoded(self._codec, tensors, self._next_seed())

    def num_bytes(self, shapes: Sequence[Size]) -> int:
        """The size of encoded tensors of these shapes."""
        return coded_bytes(self._codec, shapes)

    def decode(self, message: Tensor, shapes: Sequence[Size]) -> list[Tensor]:
        """The fp32 tensors of these shapes that were encoded as `message`.

        Raises:
            ValueError: `message` has another size than tensors of these shapes.
        """
        return decoded(self._codec, message, shapes)

    def _next_seed(self) -> int:
        """The seed that rounds the next message."""
        number, self._num_messages = self._num_messages, self._num_messages + 1
        return derive(self._seed, "rounding", f"{self.collective.rank}/{number}", self._step)

    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """The sum of each number over all workers, in float64 whatever the codec."""
        message = torch.tensor(list(numbers), dtype=torch.float64).view(torch.uint8)
        lengths = [len(message)] * self.collective.size
        return _Numbers(self.collective.all_gather(message, lambda: lengths), self)

    def traffic(self, dense_bytes: float) -> Traffic:
        """What this worker has sent so far; `dense_bytes` is what a dense all-reduce would send."""
        return Traffic(
            bytes_sent=self.collective.meter.sent,
            bytes_received=self.collective.meter.received,
            bytes_dense=dense_bytes,
            exchange_seconds=self.waited_seconds,
            wire_seconds=self.collective.busy_seconds,
        )

    def wait(self, pending: Pending[T]) -> T:
        """Wait for a result, and count the seconds of waiting."""
        began = perf_counter()
        try:
            return pending.wait()
        finally:
            self.waited_seconds += perf_counter() - began


def encoded(codec: Codec, tensors: Sequence[Tensor], seed: int) -> Tensor:
    """The bytes of all tensors, concatenated; `seed` is that of stochastic rounding."""
    return joined([codec.encode(tensor, seed) for tensor in tensors])


def decoded(codec: Codec, message: Tensor, shapes: Sequence[Size]) -> list[Tensor]:
    """The fp32 tensors of these shapes that were encoded as `message`.

    Raises:
        ValueError: `message` has another size than tensors of these shapes.
    """
    sizes = [codec.num_bytes(shape) for shape in shapes]
    if sum(sizes) != len(message):
        raise ValueError(f"{sum(sizes)} bytes are expected, and {len(message)} have come")
    return [codec.decode(p, shape) for p, shape in zip(message.split(sizes), shapes, strict=True)]


def sums_codec(codec: str) -> Codec:
    """The codec that sends the sums of values that were sent in `codec`."""
    return make_codec(SUMS_CODECS.get(codec, codec))


def coded_bytes(codec: Codec, shapes: Sequence[Sequence[int]]) -> int:
    """The size of encoded tensors of these shapes."""
    return sum(map(codec.num_bytes, shapes))


def piece_shapes(shapes: Sequence[Sequence[int]], num_workers: int, rank: int) -> list[Size]:
    """The shapes of the pieces that worker `rank` adds up: some rows of each tensor.

    A vector is divided by numbers. If rows do not divide evenly, the first workers have one more.
    """
    found = []
    for shape in shapes:
        num_rows, *row = shape if len(shape) > 1 else (Size(shape).numel(),)
        found.append(Size((num_rows // num_workers + (rank < num_rows % num_workers), *row)))
    return found


def joined(messages: Sequence[Tensor]) -> Tensor:
    """Concatenate byte strings; a single one is returned itself, not a copy."""
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


class _Split(Pending[list[Tensor]]):
    """A flat sum, split into tensors of the shapes that were summed."""

    def __init__(self, flat: Pending[list[Tensor]], shapes: Sequence[Size]) -> None:
        self._flat, self._shapes = flat, shapes

    def wait(self) -> list[Tensor]:
        (flat,) = self._flat.wait()
        pieces = flat.split([shape.numel() for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]


class _Joined(Pending[list[Tensor]]):
    """Sums, put together from the pieces that the workers have added up."""

    def __init__(
        self,
        summed: Pending[list[Tensor]],
        codec: Codec,
        shapes: Sequence[Size],
        shapes_of: Sequence[Sequence[Size]],
    ) -> None:
        self._summed, self._codec, self._shapes, self._shapes_of = summed, codec, shapes, shapes_of

    def wait(self) -> list[Tensor]:
        parts = [
            decoded(self._codec, message, shapes)
            for message, shapes in zip(self._summed.wait(), self._shapes_of, strict=True)
        ]
        joined_up = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return [whole.view(shape) for whole, shape in zip(joined_up, self._shapes, strict=True)]
