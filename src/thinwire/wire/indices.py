"""Sorted row ids as bytes: the first id, then the gaps between neighbours, as narrow as they fit.

A block of ids is 8 bytes of header (uint32 how many, uint8 bytes a gap, 3 bytes of nothing), the
first id (int64), and a gap of 1, 2, 4 or 8 bytes for each of the others; no ids are the header
alone. Ids by falling frequency lie close together where most of them lie, so one byte a gap serves
most steps.

R ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEADER_BYTES = 8
FIRST_BYTES = 8
# PyTorch computes with no unsigned type but uint8, so wider gaps are signed.
_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode_ids(ids_R: Tensor) -> Tensor:
    """Ids as bytes, uint8.

    Args:
        ids_R: int64, distinct, not negative, rising.
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
    """The ids, int64, that `encode_ids` made these bytes of.

    Raises:
        ValueError: these bytes are no ids.
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
    """The size of the block of ids with which `message` begins.

    Raises:
        ValueError: it begins with none.
    """
    return _size(*_header(message))


def encoded_bytes(num_ids: int, largest_gap: int) -> int:
    """The size of a block of so many ids, none further than `largest_gap` from the one before."""
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
