"""Frames: what goes in comes out, in the bytes that are documented, and nothing else is read."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.wire.frames import HEADER_BYTES, Frame, frame_bytes, pack, unpack

torch.set_num_threads(1)


def part(content: bytes) -> torch.Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


def contents(frame: Frame) -> list[bytes]:
    return [bytes(p.tolist()) for p in frame.parts]


@given(
    kind=st.integers(-(2**31), 2**31 - 1),
    numbers=st.lists(st.floats(allow_nan=False), max_size=5),
    parts=st.lists(st.binary(max_size=20), max_size=5),
)
def test_round_trip(kind: int, numbers: list[float], parts: list[bytes]) -> None:
    frame = Frame(kind, tuple(numbers), tuple(map(part, parts)))
    data = pack(frame)
    assert data.dtype == torch.uint8
    assert len(data) == frame_bytes(len(numbers), [len(p) for p in parts])
    found = unpack(data)
    assert (found.kind, found.numbers, contents(found)) == (kind, tuple(numbers), parts)


def test_the_bytes_are_those_documented() -> None:
    frame = Frame(7, (1.5, -2.0), (part(b"abc"), part(b""), part(b"d")))
    expected = b"TWF1" + struct.pack("<iii", 7, 2, 3) + struct.pack("<dd", 1.5, -2.0)
    expected += struct.pack("<qqq", 3, 0, 1) + b"abcd"
    assert bytes(pack(frame).tolist()) == expected
    assert len(expected) == frame_bytes(2, [3, 0, 1]) == 16 + 8 * 2 + 8 * 3 + 4


def test_the_smallest_frame() -> None:
    assert len(pack(Frame(0))) == HEADER_BYTES == frame_bytes(0, [])
    assert unpack(pack(Frame(0))) == Frame(0)


def test_numbers_that_are_not_finite() -> None:
    found = unpack(pack(Frame(1, (float("inf"), float("nan")))))
    assert found.numbers[0] == float("inf") and found.numbers[1] != found.numbers[1]


def test_a_large_part() -> None:
    large = torch.arange(3_000_000).to(torch.uint8)
    assert torch.equal(unpack(pack(Frame(1, (), (large,)))).parts[0], large)


WHOLE = bytes(pack(Frame(3, (1.0,), (part(b"abcdef"),))).tolist())


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_frame_cut_off_anywhere_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="frame"):
        unpack(part(WHOLE[:length]))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (WHOLE + b"x", "need 6 bytes, not 7"),
        (b"XWF1" + WHOLE[4:], "no frame: they do not begin with TWF1"),
        (WHOLE[:8] + struct.pack("<ii", -1, 1) + WHOLE[16:], "cannot have -1 numbers"),
        (WHOLE[:8] + struct.pack("<ii", 1, -2) + WHOLE[16:], "1 numbers and -2 parts"),
        (WHOLE[:8] + struct.pack("<ii", 2**31 - 1, 1) + WHOLE[16:], "cut off"),
        (WHOLE[:24] + struct.pack("<q", -6) + WHOLE[32:], "need -6 bytes"),
        (WHOLE[:24] + struct.pack("<q", 2**62) + WHOLE[32:], "need 4611686018427387904 bytes"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        unpack(part(data))


@given(st.binary(max_size=80))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for content in (data, b"TWF1" + data):
        try:
            frame = unpack(part(content))
        except ValueError:
            continue
        again = pack(frame)
        assert bytes(again.tolist()) == content
