"""Coded collectives: sums through every codec, in the bytes that are documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.exchange.coded import CodedCollective, joined
from thinwire.exchange.sizes import sum_bytes, total_bytes
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective

torch.set_num_threads(1)

Together = Callable[..., list[Any]]
SHAPES = [(5, 3), (7,), (0, 4), (), (2, 2, 2)]
codecs = pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])


def tensors(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


@codecs
@pytest.mark.parametrize("transport", ["in process", "gloo"])
@pytest.mark.parametrize("size", [2, 3])
def test_sums(codec: str, transport: str, size: int, together: Together) -> None:
    def work(member: Collective) -> tuple[list[Tensor], int]:
        coded = CodedCollective(member, codec, seed=1)
        found = coded.wait(coded.sum(tensors(member.rank)))
        return found, member.meter.sent

    expected = [sum(parts) for parts in zip(*map(tensors, range(size)), strict=True)]
    everyone = together(size, work, transport=transport)
    # A step of every worker's row, and one of the sums' rows.
    tolerance = {
        "fp32": 1e-6,
        "bf16": 0.02 * size,
        "int8": 0.03 * size + 0.05,
        "int4": 0.5 * size + 0.05,
    }[codec]
    for rank, (found, sent) in enumerate(everyone):
        for one, other, first in zip(found, expected, everyone[0][0], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
            assert one.dtype == torch.float32
            assert torch.equal(one, first)  # the same bits for all
        assert sent == sum_bytes(size, codec, SHAPES, rank)


def test_the_bytes_of_a_sum_written_out() -> None:
    """15 + 7 + 0 + 1 + 8 numbers, of which three workers add up 6 + 3 + 1 + 4, 6 + 2 + 4, 3 + 2."""
    # Without scales rows need not stay together: 31 numbers are 11, 10 and 10.
    assert sum_bytes(3, "fp32", SHAPES, 0) == 4 * (10 + 10 + 2 * 11)
    assert sum_bytes(3, "bf16", SHAPES, 0) == 2 * (10 + 10 + 2 * 11)
    assert sum_bytes(3, "bf16", SHAPES, 1) == 2 * (11 + 10 + 2 * 10)
    first, second, third = (14 + 4 * 5, 12 + 4 * 4, 5 + 4 * 2)
    assert sum_bytes(3, "int8", SHAPES, 0) == second + third + 2 * first
    assert sum_bytes(3, "int8", SHAPES, 1) == first + third + 2 * second
    assert sum_bytes(3, "int8", SHAPES, 2) == first + second + 2 * third
    # Rows of three take two bytes, or six numbers three; what has no rows goes as int8.
    narrow = (3 + 3 + 1 + 2 + 4 * 5, 3 + 2 + 2 + 4 * 4, 2 + 2 + 4 * 2)
    assert sum_bytes(3, "int4", SHAPES, 0) == narrow[1] + narrow[2] + 2 * first
    assert sum_bytes(3, "int4", SHAPES, 2) == narrow[0] + narrow[1] + 2 * third
    assert total_bytes(3, 10) == 2 * 80


def test_a_sum_in_int8_sends_what_an_all_reduce_of_bytes_would() -> None:
    blocks = [(1024, 256), (1024,)]
    numbers, num_rows = 1024 * 257, 1025
    for size in (2, 4, 16):
        dense = 2 * (size - 1) / size * (numbers + 4 * num_rows)
        assert sum_bytes(size, "int8", blocks) == pytest.approx(dense, rel=1e-3)


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_numbers_are_added_up_in_fp32(codec: str, together: Together) -> None:
    """Of many that are small beside the sum so far, none is lost on the way."""
    size = 9

    def work(member: Collective) -> Tensor:
        coded = CodedCollective(member, codec, seed=1)
        own = torch.full((9, 4), 256.0 if member.rank == 0 else 1.0)
        (found,) = coded.wait(coded.sum([own]))
        return found

    for found in together(size, work):  # the next number of bf16 after 256 is 258
        torch.testing.assert_close(found, torch.full((9, 4), 264.0), rtol=0, atol=1e-3)


def test_int8_keeps_the_small_beside_the_large(together: Together) -> None:
    """A small number of one worker is not lost beside a large one of the other."""

    def work(member: Collective) -> Tensor:
        coded = CodedCollective(member, "int8", seed=1)
        own = torch.full((4, 5), 1e4 if member.rank else 1e-4)
        (found,) = coded.wait(coded.sum([own]))
        return found

    for found in together(2, work):
        torch.testing.assert_close(found, torch.full((4, 5), 1e4 + 1e-4))


@codecs
def test_encode_and_decode(codec: str) -> None:
    coded = CodedCollective(Alone(), codec, seed=1)
    shapes = [torch.Size(shape) for shape in SHAPES]
    found = coded.decode(coded.encode(tensors(0)), shapes)
    for one, other in zip(found, tensors(0), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.4 if codec == "int4" else 0.03)
    assert not coded.decode(coded.encode([]), [])
    with pytest.raises(ValueError, match="bytes"):
        coded.decode(coded.encode(tensors(0))[1:], shapes)


def test_rounding_differs_from_message_to_message_and_from_worker_to_worker() -> None:
    def messages(rank: int, *steps: int) -> list[bytes]:
        alone = Alone()
        alone.rank = rank
        coded, found = CodedCollective(alone, "int8", seed=1), []
        for step in steps:
            coded.set_step(step)
            found.append(bytes(coded.encode([torch.linspace(-1.0, 1.0, 100)]).tolist()))
        return found

    assert len({*messages(0, 0, 0, 1, 2), *messages(1, 0, 0, 1, 2)}) == 8
    # A run that begins at step 2 rounds as one that has come there.
    assert messages(0, 2, 2) == messages(0, 0, 1, 1, 2, 2)[-2:]


@codecs
def test_totals_are_exact_whatever_the_codec(codec: str, together: Together) -> None:
    numbers = [1e15 + 1, 0.1, float("inf")]

    def work(member: Collective) -> list[float]:
        return CodedCollective(member, codec, seed=1).total(numbers).wait()

    assert together(2, work) == [[2e15 + 2, 0.2, float("inf")]] * 2


def test_waiting_is_counted(together: Together) -> None:
    def work(member: Collective) -> float:
        coded = CodedCollective(member, "fp32", seed=1)
        assert coded.waited_seconds == 0.0
        coded.total([1.0]).wait()
        return coded.waited_seconds

    assert all(seconds > 0 for seconds in together(2, work))


def test_joined() -> None:
    assert joined([]).shape == (0,) and joined([]).dtype == torch.uint8
    parts = [torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([3], dtype=torch.uint8)]
    assert joined(parts).tolist() == [1, 2, 3]
