"""Codecs encode values as bytes: 4, 2, 1 or 0.5 bytes per value; int8 and int4 add row scales.

The size of the bytes depends only on the shape of the values, so no length has to be sent. Bytes
are in the machine's order, which is little-endian on all machines that PyTorch supports.

R rows, D numbers per row; a vector or a single number counts as one row.
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
# Rounding takes several passes over this many numbers at a time, which stay in the cache.
PIECE_NUMBERS = 1 << 15
# Number of distinct probabilities of rounding up. It is small enough that the largest number is
# never rounded up by one step more.
NOISE_LEVELS = 1 << 12


class Codec(ABC):
    """Encodes fp32 values as bytes and decodes them."""

    name: ClassVar[str]
    per_row: ClassVar[bool]
    """Whether each row is encoded with a scale of its own, so that no row may be divided."""

    @abstractmethod
    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """The bytes of `values`, uint8 `[num_bytes(values.shape)]`.

        Args:
            values: fp32, of any shape.
            seed: the seed of stochastic rounding; None: round to the nearest.
        """

    @abstractmethod
    def encode_pieces(
        self, values: Tensor, num_pieces: int, seed: int | None = None
    ) -> list[Tensor]:
        """The bytes of each piece of `values`, which `Tensor.tensor_split` divides by rows.

        A vector is divided by numbers, and its pieces share one scale. For the arguments see
        `encode`.
        """

    @abstractmethod
    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """The fp32 values of this shape that were encoded as `data`, in new memory.

        Raises:
            ValueError: `data` has another size than values of this shape.
        """

    @abstractmethod
    def num_bytes(self, shape: Sequence[int]) -> int:
        """The size of encoded values of this shape."""


class Fp32(Codec):
    """Four bytes per value, without loss."""

    name = "fp32"
    per_row = False

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """See `Codec`."""
        return _as_bytes(values.float())

    def encode_pieces(
        self, values: Tensor, num_pieces: int, seed: int | None = None
    ) -> list[Tensor]:
        """See `Codec`."""
        return [self.encode(piece) for piece in _pieces(values, num_pieces)]

    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Codec`."""
        own = _whole(data, self.num_bytes(shape)).clone()
        return own.view(torch.float32).reshape(tuple(shape))

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec`."""
        return 4 * _product(shape)


class Bf16(Codec):
    """Two bytes per value: the range of fp32, 8 bits of precision, rounded to the nearest.

    The largest fp32 numbers would round to infinity; they are decoded as the largest bf16 number.
    """

    name = "bf16"
    per_row = False

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """See `Codec`."""
        encoded = values.to(torch.bfloat16)
        too_large = encoded.isinf()
        if bool(too_large.any()):
            too_large &= values.isfinite()
            largest = torch.finfo(torch.bfloat16).max
            encoded = torch.where(too_large, encoded.clamp(-largest, largest), encoded)
        return _as_bytes(encoded)

    def encode_pieces(
        self, values: Tensor, num_pieces: int, seed: int | None = None
    ) -> list[Tensor]:
        """See `Codec`."""
        return [self.encode(piece) for piece in _pieces(values, num_pieces)]

    def decode(self, data: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Codec`."""
        values = _from_bytes(_whole(data, self.num_bytes(shape)), torch.bfloat16)
        return values.reshape(tuple(shape)).float()

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec`."""
        return 2 * _product(shape)


class Scaled(Codec):
    """Small integers and one fp32 scale per row: all scales first, then all integers.

    The scale of a row is its largest magnitude divided by `largest`. With a seed, rounding is
    stochastic: a number between two steps is rounded up with a probability equal to its distance
    from the lower step, so the mean is unbiased. A row that contains NaN or infinity is decoded as
    NaN.
    """

    per_row = True
    largest: ClassVar[int]

    @abstractmethod
    def _pack(self, steps: Tensor) -> Tensor:
        """Pack integers from -largest to largest, int8, into bytes."""

    @abstractmethod
    def _unpack(self, data: Tensor, count: int) -> Tensor:
        """The `count` integers that `data` holds, int8 `[count]`."""

    @abstractmethod
    def _packed_bytes(self, count: int) -> int:
        """The size of `count` packed integers."""

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """See `Codec`."""
        if not values.numel():
            return _nothing(values)
        return self._message(*self._quantised(values, seed))

    def encode_pieces(
        self, values: Tensor, num_pieces: int, seed: int | None = None
    ) -> list[Tensor]:
        """See `Codec`."""
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
        """The scale of each row, `[R]`, and every number as a multiple of it, int8 `[R, D]`."""
        rows_RD = _as_rows(values.detach().float())
        pieces = rows_RD.split(max(1, PIECE_NUMBERS // rows_RD.shape[1]))
        largest = [piece_PD.abs().amax(1) for piece_PD in pieces]
        scale_R = (torch.cat(largest) if len(largest) > 1 else largest[0]).div_(self.largest)
        # For the largest fp32 numbers, a scale that was rounded up would be decoded as infinity.
        scale_R = torch.where(scale_R.isinf(), scale_R, scale_R.clamp(max=self._largest_scale()))
        # The scale of a row of zeros is 0, and that of a tiny row is nearly 0: both become zeros.
        inverse_R1 = scale_R.reciprocal().nan_to_num_(0.0, posinf=0.0)[:, None]
        noise_PD = _noise(pieces[0].shape, seed, values.device)
        found_PD = torch.empty_like(pieces[0])
        steps_RD = torch.empty(rows_RD.shape, dtype=torch.int8, device=values.device)
        start = 0
        for piece_PD in pieces:
            rows = slice(start, start := start + len(piece_PD))
            found, noise = found_PD[: len(piece_PD)], noise_PD[: len(piece_PD)]
            torch.addcmul(noise, piece_PD, inverse_R1[rows], out=found)
            steps_RD[rows] = found.floor_().nan_to_num_(0.0)
        return scale_R.nan_to_num_(torch.nan, posinf=torch.nan), steps_RD

    def _largest_scale(self) -> float:
        """The largest fp32 number whose product with `largest` is still finite."""
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
    """One byte per value: 255 steps."""

    name = "int8"
    largest = 127

    def _pack(self, steps: Tensor) -> Tensor:
        return _as_bytes(steps)

    def _unpack(self, data: Tensor, count: int) -> Tensor:
        return data.view(torch.int8)

    def _packed_bytes(self, count: int) -> int:
        return count


class Int4(Scaled):
    """Half a byte per value: 15 steps; vectors and single numbers are encoded as int8.

    The lower half of each byte holds a number of the first half of all numbers, and the upper half
    holds one of the second half, each with 8 added to it. If the number of values is odd, the upper
    half of the last byte is 0.
    """

    name = "int4"
    largest = 7

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """See `Codec`."""
        # All biases share one scale, and 15 steps of it are too coarse for most of them.
        if values.dim() < 2:
            return Int8().encode(values, seed)
        return super().encode(values, seed)

    def encode_pieces(
        self, values: Tensor, num_pieces: int, seed: int | None = None
    ) -> list[Tensor]:
        """See `Codec`."""
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
    """The numbers to add to values of this shape before they are rounded down."""
    if seed is None:
        return torch.full(tuple(shape), 0.5, device=device)
    start, count = seed % PIECE_NUMBERS, _product(shape)
    noise = _two_rounds_of_noise(device)[start:][:PIECE_NUMBERS]
    if count > PIECE_NUMBERS:
        noise = noise.repeat(-(-count // PIECE_NUMBERS))
    return noise[:count].view(*shape)


@cache
def _two_rounds_of_noise(device: torch.device) -> Tensor:
    """Every noise level equally often, in a random order.

    The order is drawn once, because drawing it takes longer than the rest of encoding. Values that
    are added to the same noise are still rounded up with the right probability.
    """
    order = torch.randperm(PIECE_NUMBERS, generator=torch_generator(0, "rounding", "noise"))
    levels = (order % NOISE_LEVELS + 0.5) / NOISE_LEVELS
    return levels.repeat(2).to(device)


def _pieces(values: Tensor, num_pieces: int) -> Sequence[Tensor]:
    return (values if values.dim() > 1 else values.reshape(-1)).tensor_split(num_pieces)


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
    # A vector of one number is contiguous with any stride, but a view as bytes needs stride 1.
    return values.detach().contiguous().as_strided((values.numel(),), (1,)).view(torch.uint8)


def _from_bytes(data: Tensor, dtype: torch.dtype) -> Tensor:
    """View the bytes as numbers of this type; copy them if their memory is not aligned."""
    # A part of a message may start at any byte, and a view needs a multiple of the number's size.
    if data.storage_offset() % dtype.itemsize or data.data_ptr() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype)
