"""Row ids as bytes: whatever rises comes back, in the fewest bytes a gap."""

from __future__ import annotations

import struct
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.wire.indices import (
    FIRST_BYTES,
    HEADER_BYTES,
    decode_ids,
    encode_ids,
    encoded_bytes,
    ids_bytes,
)

torch.set_num_threads(1)

BORDERS = [1, 2, 254, 255, 256, 32766, 32767, 32768, 2**31 - 2, 2**31 - 1, 2**31, 2**40]


def int64(ids: list[int]) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def block(num_ids: int, width: int, first: int, gaps: bytes = b"") -> torch.Tensor:
    data = struct.pack("<iiq", num_ids, width, first) + gaps
    return torch.tensor(list(data), dtype=torch.uint8)


@given(
    first=st.integers(0, 2**40),
    gaps=st.lists(st.sampled_from(BORDERS) | st.integers(1, 400), max_size=30),
)
def test_round_trip(first: int, gaps: list[int]) -> None:
    ids = int64(list(accumulate([first, *gaps])))
    data = encode_ids(ids)
    assert data.dtype == torch.uint8
    assert len(data) == ids_bytes(data) == encoded_bytes(len(ids), max(gaps, default=0))
    found = decode_ids(data)
    assert found.dtype == torch.int64 and torch.equal(found, ids)


@pytest.mark.parametrize(
    ("gap", "width"),
    [
        (1, 1),
        (255, 1),
        (256, 2),
        (32767, 2),
        (32768, 4),
        (2**31 - 1, 4),
        (2**31, 8),
        (2**62, 8),
    ],
)
def test_the_narrowest_type_that_holds_the_largest_gap(gap: int, width: int) -> None:
    ids = int64([5, 6, 6 + gap])
    assert len(encode_ids(ids)) == 8 + 8 + 2 * width == encoded_bytes(3, gap)
    assert torch.equal(decode_ids(encode_ids(ids)), ids)


def test_no_ids_are_the_header_alone() -> None:
    data = encode_ids(int64([]))
    assert len(data) == HEADER_BYTES == encoded_bytes(0, 0)
    assert decode_ids(data).shape == (0,) and decode_ids(data).dtype == torch.int64


def test_one_id_has_no_gap() -> None:
    for only in (0, 1, 2**40):
        data = encode_ids(int64([only]))
        assert len(data) == HEADER_BYTES + FIRST_BYTES == encoded_bytes(1, 0)
        assert decode_ids(data).tolist() == [only]


def test_all_rows_take_a_byte_each() -> None:
    ids = torch.arange(70_000)
    assert len(encode_ids(ids)) == 16 + 69_999
    assert torch.equal(decode_ids(encode_ids(ids)), ids)


def test_the_bytes_are_those_documented() -> None:
    ids = int64([3, 4, 300, 301])
    expected = struct.pack("<IB3x", 4, 2) + struct.pack("<q", 3) + struct.pack("<3H", 1, 296, 1)
    assert bytes(encode_ids(ids).tolist()) == expected


def test_blocks_follow_one_another() -> None:
    sets = [[], [4], [0, 1, 999], list(range(100, 200, 3)), []]
    message = torch.cat([encode_ids(int64(ids)) for ids in sets])
    for ids in sets:
        size = ids_bytes(message)
        assert decode_ids(message[:size]).tolist() == ids
        assert decode_ids(message).tolist() == ids  # what follows it does not matter
        message = message[size:]
    assert not len(message)


@pytest.mark.parametrize(
    "data",
    [
        torch.empty(0, dtype=torch.uint8),
        encode_ids(int64([1, 2, 3]))[:5],
        encode_ids(int64([1, 2, 3]))[:-1],
        block(-1, 1, 0),
        block(1, 3, 0),
        block(1, 0, 0),
        block(2**31 - 1, 8, 0),
        block(1, 1, -4),
        block(3, 1, 0, b"\x01\x00"),
        block(2, 2, 9, struct.pack("<h", -3)),
        block(3, 8, 0, struct.pack("<qq", 2**62, 2**62)),
    ],
    ids=[
        "nothing",
        "half a header",
        "one byte short",
        "fewer than none",
        "no such width",
        "no width",
        "more than there are",
        "a negative one",
        "the same one twice",
        "one that falls",
        "one beyond all numbers",
    ],
)
def test_what_are_no_ids_is_refused(data: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a block of"):
        decode_ids(data)


@given(st.binary(max_size=40))
def test_no_bytes_do_more_than_be_refused(content: bytes) -> None:
    data = torch.tensor(list(content), dtype=torch.uint8)
    try:
        ids = decode_ids(data)
    except ValueError:
        return
    assert bool((ids >= 0).all()) and bool((ids.diff() > 0).all())
