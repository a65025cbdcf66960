"""Encodes sorted row ids as bytes: the first id, then the gaps between neighbours.

A block of ids has a header of 8 bytes (uint32: number of ids; uint8: bytes per gap; 3 unused
bytes), the first id (int64), and a gap of 1, 2, 4 or 8 bytes for each of the other ids. If there
are no ids, the block is only the header. Ids are numbered by falling frequency, so most touched ids
are close together, and in most steps one byte per gap is enough.

R ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEADER_BYTES = 8
FIRST_BYTES = 8
# uint8 is the only unsigned type with which PyTorch computes, so wider gaps are signed.
_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode_ids(ids_R: Tensor) -> Tensor:
    """Encode ids as bytes, uint8.

    Args:
        ids_R: int64, 0 or more, distinct and in rising order.
    """
    ids_R = ids_R.cpu()
    gaps = ids_R.diff()
    width = _width(int(gaps.max()) if len(gaps) else 0)
    header = torch.tensor([len(ids_R), width], dtype=torch.int32).view(torch.uint8)
    if not len(ids_R):
        return header
    gap_bytes = gaps.to(_TYPES[width]).view(torch.uint8)
    return torch.cat([header, ids_R[:1].view(torch.uint8), gap_bytes])


def decode_ids(data: Tensor) -> Tensor:
    """Decode the result of `encode_ids`; returns int64.

    Raises:
        ValueError: the bytes are not a valid block of ids.
    """
    num_ids, width = _header(data)
    if not num_ids:
        return torch.empty(0, dtype=torch.int64)
    body = data[HEADER_BYTES : _size(num_ids, width)].clone()
    first = body[:FIRST_BYTES].view(torch.int64)
    gaps = body[FIRST_BYTES:].clone().view(_TYPES[width]).long()
    ids = torch.cat([first, gaps]).cumsum(0)
    if bool((gaps < 1).any()) or bool((ids < 0).any()):
        raise ValueError(f"a block of {num_ids} ids does not rise from one to the next")
    return ids


def ids_bytes(message: Tensor) -> int:
    """The size of the block of ids at the beginning of `message`.

    Raises:
        ValueError: there is no valid block.
    """
    return _size(*_header(message))


def encoded_bytes(num_ids: int, largest_gap: int) -> int:
    """The size of a block of `num_ids` ids with gaps of at most `largest_gap`."""
    return _size(num_ids, _width(largest_gap))


def _header(message: Tensor) -> tuple[int, int]:
    if len(message) < HEADER_BYTES:
        raise ValueError(f"a block of ids begins with {HEADER_BYTES} bytes, not {len(message)}")
    num_ids, width = message[:HEADER_BYTES].clone().view(torch.int32).tolist()
    if num_ids < 0 or width not in _TYPES or _size(num_ids, width) > len(message):
        raise ValueError(
            f"a block of {num_ids} ids of {width} bytes cannot stand in {len(message)} bytes"
        )
    return num_ids, width


def _size(num_ids: int, width: int) -> int:
    return HEADER_BYTES + (FIRST_BYTES + width * (num_ids - 1) if num_ids else 0)


def _width(largest_gap: int) -> int:
    for width, dtype in _TYPES.items():
        if largest_gap <= torch.iinfo(dtype).max:
            return width
    raise AssertionError("no gap is wider than an int64")
