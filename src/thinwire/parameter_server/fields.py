"""What messages are made of, as bytes, and the checks on what a stranger may have sent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Size, Tensor

from thinwire.wire.codecs import Codec

LARGEST_WHOLE = 2.0**53


def as_bytes(text: str) -> Tensor:
    """A text as bytes, uint8."""
    data = text.encode()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _nothing()


def mask_bytes(num_rows: int) -> int:
    """The size in bytes of a mask with one bit per row."""
    return (num_rows + 7) // 8


def packed_mask(mask_R: Tensor) -> Tensor:
    """Booleans as bits."""
    return torch.from_numpy(np.packbits(mask_R.cpu().numpy()))


def unpacked_mask(data: Tensor, num_rows: int) -> Tensor:
    """The booleans of `packed_mask`.

    Raises:
        ValueError: there are not as many.
    """
    if len(data) != mask_bytes(num_rows):
        raise ValueError(f"a mask of {num_rows} rows has not {len(data)} bytes")
    return torch.from_numpy(np.unpackbits(data.numpy(), count=num_rows)).bool()


def decoded(codec: Codec, data: Tensor, shape: Size) -> Tensor:
    """The values of this shape.

    Raises:
        ValueError: the data have another size.
    """
    if len(data) != codec.num_bytes(shape):
        raise ValueError(
            f"values of shape {list(shape)} have {codec.num_bytes(shape)} bytes in {codec.name}, "
            f"not {len(data)}"
        )
    return codec.decode(data, shape)


def whole(number: float, least: int = 0) -> int:
    """A whole number, `least` or more.

    Raises:
        ValueError: it is none.
    """
    if not (least <= number <= LARGEST_WHOLE and number == int(number)):
        raise ValueError(f"{number} stands where a whole number of {least} or more belongs")
    return int(number)


def finite(number: float) -> float:
    """A number, 0 or more, and small enough for many to be added up.

    Raises:
        ValueError: it is none.
    """
    if not 0 <= number <= LARGEST_WHOLE:
        raise ValueError(f"{number} stands where a number of 0 or more belongs")
    return number


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)
