"""Tensors through a codec and over a collective: summed where they lie alike, gathered where not.

fp32 and bf16 are added up on the way, by an all-reduce. int8 and int4 carry too few bits for that:
every worker's numbers are gathered, decoded and added up in fp32, in the order of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TypeVar

import torch
from torch import Size, Tensor

from thinwire.seeds import derive
from thinwire.transport.collective import Collective, Pending
from thinwire.wire.codecs import make_codec

T = TypeVar("T")
REDUCED = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
        self._name, self._codec = codec, make_codec(codec)
        self._seed, self._step, self._num_messages = seed, 0, 0

    def at_step(self, step: int) -> None:
        """Number the messages of each step afresh, so that a resumed run rounds as any other."""
        if step != self._step:
            self._step, self._num_messages = step, 0

    def sum(self, tensors: Sequence[Tensor]) -> Pending[list[Tensor]]:
        """The sum over all workers of each tensor, which has the same shape on each."""
        shapes = [tensor.shape for tensor in tensors]
        if self._name in REDUCED:
            flat = torch.cat([tensor.reshape(-1).to(REDUCED[self._name]) for tensor in tensors])
            return _Cut(self.collective.all_reduce(flat), shapes)
        return _Added(self.collective.all_gather(self.encode(tensors)), self, shapes)

    def encode(self, tensors: Sequence[Tensor]) -> Tensor:
        """Some tensors as bytes, one after the other; `decode` takes them."""
        number, self._num_messages = self._num_messages, self._num_messages + 1
        generator = None
        if tensors and self._name not in REDUCED:
            name = f"{self.collective.rank}/{number}"
            seed = derive(self._seed, "rounding", name, self._step)
            generator = torch.Generator(tensors[0].device).manual_seed(seed)
        return joined([self._codec.encode(tensor, generator) for tensor in tensors])

    def decode(self, message: Tensor, shapes: Sequence[Size]) -> list[Tensor]:
        """The tensors that these bytes are, fp32.

        Raises:
            ValueError: they are more or fewer.
        """
        sizes = [self._codec.num_bytes(shape) for shape in shapes]
        if sum(sizes) != len(message):
            raise ValueError(f"{sum(sizes)} bytes are expected, and {len(message)} have come")
        pieces = message.split(sizes)
        return [self._codec.decode(p, shape) for p, shape in zip(pieces, shapes, strict=True)]

    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """The sum of each number over all workers, in float64 whatever the codec."""
        reduced = self.collective.all_reduce(torch.tensor(list(numbers), dtype=torch.float64))
        return _Numbers(reduced, self)

    def record(self, dense_bytes: float) -> dict[str, float]:
        """This worker's account of the wire so far; `dense_bytes` is what it would have sent."""
        return {
            "bytes_sent": self.collective.meter.sent,
            "bytes_received": self.collective.meter.received,
            "bytes_dense": dense_bytes,
            "exchange_seconds": self.waited_seconds,
            "wire_seconds": self.collective.busy_seconds,
        }

    def wait(self, pending: Pending[T]) -> T:
        """What is pending; the time it takes is counted."""
        began = perf_counter()
        try:
            return pending.wait()
        finally:
            self.waited_seconds += perf_counter() - began


def joined(messages: Sequence[Tensor]) -> Tensor:
    """Byte strings one after the other."""
    return torch.cat(list(messages)) if messages else torch.empty(0, dtype=torch.uint8)


class _Numbers(Pending[list[float]]):
    def __init__(self, reduced: Pending[Tensor], coded: CodedCollective) -> None:
        self._reduced, self._coded = reduced, coded

    def wait(self) -> list[float]:
        return [float(number) for number in self._coded.wait(self._reduced)]


class _Cut(Pending[list[Tensor]]):
    """A flat sum, cut into tensors of the shapes that went into it."""

    def __init__(self, flat: Pending[Tensor], shapes: Sequence[Size]) -> None:
        self._flat, self._shapes = flat, shapes

    def wait(self) -> list[Tensor]:
        pieces = self._flat.wait().float().split([shape.numel() for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]


class _Added(Pending[list[Tensor]]):
    """Gathered messages, decoded and added up."""

    def __init__(
        self, gathered: Pending[list[Tensor]], coded: CodedCollective, shapes: Sequence[Size]
    ) -> None:
        self._gathered, self._coded, self._shapes = gathered, coded, shapes

    def wait(self) -> list[Tensor]:
        first, *others = self._gathered.wait()
        totals = self._coded.decode(first, self._shapes)
        for message in others:
            for total, part in zip(totals, self._coded.decode(message, self._shapes), strict=True):
                total += part
        return totals
