"""Numbers as bytes: 4 for each, 2, 1 or half of one, the latter with a scale for each row.

A codec is given values of any shape and gives back bytes of a size that follows from the shape
alone, so that no length travels. Bytes are in the machine's order, which is little-endian on all
machines that PyTorch supports.

R rows, D numbers a row; a vector or a single number counts as one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.seeds import torch_generator

SCALE_BYTES = 4
# Rounding takes several passes, over so many numbers at a time that they stay in the cache.
PIECE_NUMBERS = 1 << 15
# Of the chances with which a number goes up. So few that the largest never reaches a step more.
NOISE_LEVELS = 1 << 12


class Codec(ABC):
    """Turns fp32 values into bytes and back."""

    name: ClassVar[str]

    @abstractmethod
    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """The bytes of `values`, uint8 `[num_bytes(values.shape)]`.

        Args:
            values: fp32, of any shape.
            seed: of stochastic rounding; None: to the nearest.
        """

    @abstractmethod
    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """The fp32 values of this shape whose bytes are `data`, in memory of their own.

        Raises:
            ValueError: there are not as many bytes.
        """

    @abstractmethod
    def num_bytes(self, shape: Sequence[int]) -> int:
        """The size of encoded values of this shape."""


class Fp32(Codec):
    """Four bytes a number; nothing is lost."""

    name = "fp32"

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """See `Codec`."""
        return _as_bytes(values.float())

    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Codec`."""
        own = _whole(data, self.num_bytes(shape)).clone()
        return own.view(torch.float32).reshape(tuple(shape))

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec`."""
        return 4 * _product(shape)


class Bf16(Codec):
    """Two bytes a number: the range of fp32, 8 bits of precision, rounded to the nearest.

    The largest numbers of fp32 would round to infinity; they arrive as the largest of bf16.
    """

    name = "bf16"

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """See `Codec`."""
        encoded = values.to(torch.bfloat16)
        too_large = encoded.isinf()
        if bool(too_large.any()):
            too_large &= values.isfinite()
            largest = torch.finfo(torch.bfloat16).max
            encoded = torch.where(too_large, encoded.clamp(-largest, largest), encoded)
        return _as_bytes(encoded)

    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Codec`."""
        values = _from_bytes(_whole(data, self.num_bytes(shape)), torch.bfloat16)
        return values.reshape(tuple(shape)).float()

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec`."""
        return 2 * _product(shape)


class Scaled(Codec):
    """Small whole numbers and one fp32 scale a row: all scales first, then all numbers.

    A row's scale is its largest magnitude over `largest`. With a seed a number between two steps
     goes up with the probability of its distance from the lower one, so that the mean is kept.
    A row with a number that is not finite arrives as NaN.
    """

    largest: ClassVar[int]

    @abstractmethod
    def _pack(self, steps: Tensor) -> Tensor:
        """Whole numbers from -largest to largest, int8, as bytes."""

    @abstractmethod
    def _unpack(self, data: Tensor, count: int) -> Tensor:
        """So many numbers, int8 `[count]`."""

    @abstractmethod
    def _packed_bytes(self, count: int) -> int:
        """The bytes of so many numbers."""

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """See `Codec`."""
        if not values.numel():
            return _nothing(values)
        return self._message(*self._quantised(values, seed))

    def encode_pieces(
        self, values: Tensor, num_pieces: int, seed: int | None = None
    ) -> list[Tensor]:
        """The bytes of each piece of `values`, which `Tensor.tensor_split` cuts by rows.

        Of a vector it cuts numbers; they share one scale. For the rest see `Codec.encode`.
        """
        if not values.numel():
            return [_nothing(values)] * num_pieces
        scale_R, steps_RD = self._quantised(values, seed)
        if values.dim() > 1:
            pieces = zip(
                scale_R.tensor_split(num_pieces), steps_RD.tensor_split(num_pieces), strict=True
            )
            return [self._message(*piece) for piece in pieces]
        return [
            self._message(scale_R, piece) if len(piece) else _nothing(values)
            for piece in steps_RD[0].tensor_split(num_pieces)
        ]

    def _quantised(self, values: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
        """The scale of each row, `[R]`, and how many times that every number is, int8 `[R, D]`."""
        rows_RD = _as_rows(values.detach().float())
        pieces = rows_RD.split(max(1, PIECE_NUMBERS // rows_RD.shape[1]))
        largest = [piece_PD.abs().amax(1) for piece_PD in pieces]
        scale_R = (torch.cat(largest) if len(largest) > 1 else largest[0]).div_(self.largest)
        # Of the largest numbers of fp32 the scale, rounded up, would give infinity when decoded.
        scale_R = torch.where(scale_R.isinf(), scale_R, scale_R.clamp(max=self._largest_scale()))
        # A row of zeros has scale 0, and a tiny one nearly: in steps of infinity both are zeros.
        inverse_R1 = scale_R.reciprocal().nan_to_num_(0.0, posinf=0.0)[:, None]
        noise_PD = _noise(pieces[0].shape, seed, values.device)
        found_PD = torch.empty_like(pieces[0])
        steps_RD = torch.empty(rows_RD.shape, dtype=torch.int8, device=values.device)
        start = 0
        for piece_PD in pieces:
            here = slice(start, start := start + len(piece_PD))
            found, noise = found_PD[: len(piece_PD)], noise_PD[: len(piece_PD)]
            torch.addcmul(noise, piece_PD, inverse_R1[here], out=found)
            steps_RD[here] = found.floor_().nan_to_num_(0.0)
        return scale_R.nan_to_num_(torch.nan, posinf=torch.nan), steps_RD

    def _largest_scale(self) -> float:
        """The largest fp32 number that times `largest` is one too."""
        scale = torch.tensor(torch.finfo(torch.float32).max) / self.largest
        if bool((scale * self.largest).isinf()):
            scale = scale.nextafter(torch.zeros(()))
        return float(scale)

    def _message(self, scale_R: Tensor, steps: Tensor) -> Tensor:
        return torch.cat([_as_bytes(scale_R), self._pack(steps)])

    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Codec`."""
        data = _whole(data, self.num_bytes(shape))
        num_scale_bytes = SCALE_BYTES * _num_rows(shape)
        scale_R = _from_bytes(data[:num_scale_bytes], torch.float32)
        steps = self._unpack(data[num_scale_bytes:], _product(shape)).float()
        if not steps.numel():
            return steps.reshape(tuple(shape))
        return steps.view(len(scale_R), -1).mul_(scale_R[:, None]).reshape(tuple(shape))

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec`."""
        return SCALE_BYTES * _num_rows(shape) + self._packed_bytes(_product(shape))


class Int8(Scaled):
    """One byte a number: 255 steps."""

    name = "int8"
    largest = 127

    def _pack(self, steps: Tensor) -> Tensor:
        return _as_bytes(steps)

    def _unpack(self, data: Tensor, count: int) -> Tensor:
        return data.view(torch.int8)

    def _packed_bytes(self, count: int) -> int:
        return count


class Int4(Scaled):
    """Half a byte a number: 15 steps; vectors and single numbers go as int8.

    A byte holds a number of the first half of them all and, in its upper half, one of the second,
    each with 8 added to it. Of an odd number of them the last byte's upper half is empty.
    """

    name = "int4"
    largest = 7

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """See `Codec`."""
        # All biases share one scale, which is too coarse for most of them in 15 steps.
        if values.dim() < 2:
            return Int8().encode(values, seed)
        return super().encode(values, seed)

    def encode_pieces(
        self, values: Tensor, num_pieces: int, seed: int | None = None
    ) -> list[Tensor]:
        """See `Scaled`."""
        if values.dim() < 2:
            return Int8().encode_pieces(values, num_pieces, seed)
        return super().encode_pieces(values, num_pieces, seed)

    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Codec`."""
        return Int8().decode(data, shape) if len(shape) < 2 else super().decode(data, shape)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec`."""
        return Int8().num_bytes(shape) if len(shape) < 2 else super().num_bytes(shape)

    def _pack(self, steps: Tensor) -> Tensor:
        halves = steps.reshape(-1).add(8).view(torch.uint8)
        packed, upper = halves.tensor_split([self._packed_bytes(len(halves))])
        packed[: len(upper)] |= upper << 4
        return packed

    def _unpack(self, data: Tensor, count: int) -> Tensor:
        halves = torch.cat([data & 15, data >> 4])[:count]
        return halves.view(torch.int8).sub_(8)

    def _packed_bytes(self, count: int) -> int:
        return (count + 1) // 2


def make_codec(name: str) -> Codec:
    """The codec of this name: fp32, bf16, int8 or int4."""
    return {codec.name: codec for codec in (Fp32(), Bf16(), Int8(), Int4())}[name]


def _noise(shape: Sequence[int], seed: int | None, device: torch.device) -> Tensor:
    """What is added to numbers of this shape before they are rounded down."""
    if seed is None:
        return torch.full(tuple(shape), 0.5, device=device)
    start, count = seed % PIECE_NUMBERS, _product(shape)
    noise = _two_rounds_of_noise(device)[start:][:PIECE_NUMBERS]
    if count > PIECE_NUMBERS:
        noise = noise.repeat(-(-count // PIECE_NUMBERS))
    return noise[:count].view(*shape)


@cache
def _two_rounds_of_noise(device: torch.device) -> Tensor:
    """Every level equally often, in an order drawn once: drawing takes longer than all else.

    Numbers that meet the same noise are still as likely to go up as they should be.
    """
    order = torch.randperm(PIECE_NUMBERS, generator=torch_generator(0, "rounding", "noise"))
    levels = (order % NOISE_LEVELS + 0.5) / NOISE_LEVELS
    return levels.repeat(2).to(device)


def _nothing(values: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=values.device)


def _as_rows(values: Tensor) -> Tensor:
    return values.reshape(len(values) if values.dim() > 1 else 1, -1)


def _num_rows(shape: Sequence[int]) -> int:
    if not _product(shape):
        return 0
    return shape[0] if len(shape) > 1 else 1


def _product(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _whole(data: Tensor, num_bytes: int) -> Tensor:
    if len(data) != num_bytes:
        raise ValueError(f"{num_bytes} bytes of values are expected, and there are {len(data)}")
    return data


def _as_bytes(values: Tensor) -> Tensor:
    # A vector of one number counts as contiguous whatever its stride, and bytes want a stride of 1.
    return values.detach().contiguous().as_strided((values.numel(),), (1,)).view(torch.uint8)


def _from_bytes(data: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that these bytes are, in the same memory if it can be read as such."""
    # A message's parts stand at any place, and numbers want places of their own size.
    if data.storage_offset() % dtype.itemsize or data.data_ptr() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype)
