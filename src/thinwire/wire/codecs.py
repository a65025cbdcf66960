"""Numbers as bytes: 4 for each, 2, 1 or half of one, the latter with a scale for each row.

A codec is given values of any shape and gives back bytes of a size that follows from the shape
alone, so that no length travels. Bytes are in the machine's order, which is little-endian on all
machines that PyTorch supports.

R rows, D numbers a row; a vector or a single number counts as one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor

SCALE_BYTES = 4
# Rounding takes several passes, over so many numbers at a time that they stay in the cache.
PIECE_NUMBERS = 1 << 15


class Codec(ABC):
    """Turns fp32 values into bytes and back."""

    name: ClassVar[str]

    @abstractmethod
    def encode(self, values: Tensor, generator: Generator | None = None) -> Tensor:
        """The bytes of `values`, uint8 `[num_bytes(values.shape)]`.

        Args:
            values: fp32, of any shape.
            generator: of stochastic rounding, on the device of `values`; None: to the nearest.
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

    def encode(self, values: Tensor, generator: Generator | None = None) -> Tensor:
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
    """Two bytes a number: the range of fp32, 8 bits of precision, rounded to the nearest."""

    name = "bf16"

    def encode(self, values: Tensor, generator: Generator | None = None) -> Tensor:
        """See `Codec`."""
        return _as_bytes(values.to(torch.bfloat16))

    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Codec`."""
        values = _from_bytes(_whole(data, self.num_bytes(shape)), torch.bfloat16)
        return values.reshape(tuple(shape)).float()

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec`."""
        return 2 * _product(shape)


class Scaled(Codec):
    """Small whole numbers and one fp32 scale a row: all scales first, then all numbers.

    A row's scale is its largest magnitude over `largest`. With a generator a number between two
    steps goes up with the probability of its distance from the lower one, so that the mean is kept.
    A row with a number that is not finite arrives as NaN.
    """

    largest: ClassVar[int]

    @abstractmethod
    def _pack(self, steps_RD: Tensor) -> Tensor:
        """Whole numbers from -largest to largest, int8, as bytes."""

    @abstractmethod
    def _unpack(self, data: Tensor, count: int) -> Tensor:
        """So many numbers, int8 `[count]`."""

    @abstractmethod
    def _packed_bytes(self, count: int) -> int:
        """The bytes of so many numbers."""

    def encode(self, values: Tensor, generator: Generator | None = None) -> Tensor:
        """See `Codec`."""
        if not values.numel():
            return torch.empty(0, dtype=torch.uint8, device=values.device)
        rows_RD = _as_rows(values.float())
        R, D = rows_RD.shape
        scale_R = rows_RD.new_empty(R)
        steps_RD = torch.empty(R, D, dtype=torch.int8, device=values.device)
        num_rows = max(1, PIECE_NUMBERS // D)
        noise_PD = None
        if generator is not None:
            # The same for each piece, for drawing it takes longer than all else: what is rounded
            # alike is still as likely to go up as it should be.
            noise_PD = rows_RD.new_empty(min(R, num_rows), D).uniform_(generator=generator)
        for start in range(0, R, num_rows):
            piece = slice(start, start + num_rows)
            scale_R[piece] = _quantise(rows_RD[piece], self.largest, noise_PD, steps_RD[piece])
        return torch.cat([_as_bytes(scale_R), self._pack(steps_RD)])

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

    def _pack(self, steps_RD: Tensor) -> Tensor:
        return _as_bytes(steps_RD)

    def _unpack(self, data: Tensor, count: int) -> Tensor:
        return data.view(torch.int8)

    def _packed_bytes(self, count: int) -> int:
        return count


class Int4(Scaled):
    """Half a byte a number: 15 steps; vectors and single numbers go as int8.

    A byte holds two neighbours, the first in its lower half, each with 8 added to it. Of an odd
    number of them the last one's upper half is empty.
    """

    name = "int4"
    largest = 7

    def encode(self, values: Tensor, generator: Generator | None = None) -> Tensor:
        """See `Codec`."""
        # All biases share one scale, which is too coarse for most of them in 15 steps.
        if values.dim() < 2:
            return Int8().encode(values, generator)
        return super().encode(values, generator)

    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Codec`."""
        return Int8().decode(data, shape) if len(shape) < 2 else super().decode(data, shape)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec`."""
        return Int8().num_bytes(shape) if len(shape) < 2 else super().num_bytes(shape)

    def _pack(self, steps_RD: Tensor) -> Tensor:
        halves = steps_RD.view(-1).add(8).view(torch.uint8)
        upper = halves[1::2] << 4
        packed = halves[::2].clone()
        packed[: len(upper)] |= upper
        return packed

    def _unpack(self, data: Tensor, count: int) -> Tensor:
        halves = torch.stack([data & 15, data >> 4], 1).view(-1)
        return halves[:count].view(torch.int8).sub_(8)

    def _packed_bytes(self, count: int) -> int:
        return (count + 1) // 2


def make_codec(name: str) -> Codec:
    """The codec of this name: fp32, bf16, int8 or int4."""
    return {codec.name: codec for codec in (Fp32(), Bf16(), Int8(), Int4())}[name]


def _quantise(rows_PD: Tensor, largest: int, noise_PD: Tensor | None, steps_PD: Tensor) -> Tensor:
    """Write each number's steps of its row's scale into `steps_PD`; the scales `[P]`."""
    # Ten times as fast as the norm that it is.
    scale_P = rows_PD.abs().amax(1) / largest
    scale_P = torch.where(scale_P.isfinite(), scale_P, torch.nan)
    # A row of zeros has scale 0, and a tiny one may: dividing by 1 leaves them zeros.
    divisor_P = torch.where(scale_P > 0, scale_P, 1.0)
    found_PD = rows_PD / divisor_P[:, None]
    if noise_PD is None:
        found_PD.round_()
    else:
        found_PD.add_(noise_PD[: len(found_PD)]).floor_()
    steps_PD.copy_(found_PD.nan_to_num_(0.0).clamp_(-largest, largest))
    return scale_P


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
