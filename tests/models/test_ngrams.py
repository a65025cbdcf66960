"""Hashed n-grams: which rows are found, with which sign, and what they add up to."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from thinwire.models.ngrams import NO_TOKEN, SCALE, Ngrams, sum_rows

WORD = 1 << 64


def ngrams(largest: int = 3, num_rows: int = 50, width: int = 4) -> Ngrams:
    made = Ngrams(num_rows, width, largest)
    torch.nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(0))
    return made


def tokens(B: int, S: int) -> Tensor:
    return torch.randint(1, 30, (B, S), generator=torch.Generator().manual_seed(1))


def expected_row(last: list[int], num_rows: int) -> tuple[int, float]:
    """In Python's whole numbers, modulo 2^64; the tokens from the newest to the oldest."""
    hash, *older = last
    for token in older:
        hash = (hash * 0x9E3779B97F4A7C15 + token) % WORD
    hash = (hash + len(last)) % WORD
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hash = (hash ^ (hash >> 33)) * multiplier % WORD
    hash ^= hash >> 33
    return hash % (WORD >> 1) % num_rows, -SCALE if hash >> 63 else SCALE


@pytest.mark.parametrize("largest", [2, 3, 5])
def test_rows_and_signs_are_those_of_whole_numbers(largest: int) -> None:
    """So they are the same on every machine; a hash of Python's would differ by process."""
    made, tokens_BS = ngrams(largest, num_rows=1013), tokens(3, 9)
    rows_BTK, factor_BTK = made.rows(tokens_BS, 5)
    assert rows_BTK.shape == factor_BTK.shape == (3, 5, largest - 1)
    for b, t, k in product(range(3), range(5), range(largest - 1)):
        end = 9 - 5 + t + 1
        last = tokens_BS[b, max(0, end - (k + 2)) : end].tolist()[::-1]
        row, factor = expected_row(last, 1013)
        assert int(rows_BTK[b, t, k]) == row
        assert float(factor_BTK[b, t, k]) == pytest.approx(factor)


def test_a_known_row() -> None:
    """Rows of a saved table keep their meaning."""
    rows_BTK, factor_BTK = ngrams(4, num_rows=1 << 18).rows(torch.tensor([[7, 5, 1, 9]]), 1)
    assert rows_BTK.flatten().tolist() == [240282, 240902, 91558]
    assert factor_BTK.sign().flatten().tolist() == [-1.0, 1.0, -1.0]


def test_orders_that_reach_beyond_what_was_read_add_nothing() -> None:
    made = ngrams(4)
    tokens_BS = torch.tensor([[NO_TOKEN, NO_TOKEN, 3, 4, 5], [NO_TOKEN, 1, 3, 4, 5]])
    _, factor_BTK = made.rows(tokens_BS, 3)
    assert (factor_BTK != 0).tolist() == [
        [[False, False, False], [True, False, False], [True, True, False]],
        [[True, False, False], [True, True, False], [True, True, True]],
    ]
    # What is not given was not read.
    _, shorter_BTK = made.rows(tokens_BS[:1, 2:], 3)
    assert torch.equal(shorter_BTK[0], factor_BTK[0])


def test_a_position_depends_on_its_last_tokens_alone() -> None:
    made, tokens_BS = ngrams(3), tokens(2, 12)
    whole = made.rows(tokens_BS, 10)
    for first in range(10):
        cut = made.rows(tokens_BS[:, first : first + 3], 1)
        for found, expected in zip(cut, whole, strict=True):
            assert torch.equal(found[:, 0], expected[:, first])


def test_rows_are_used_evenly_and_signs_are_fair() -> None:
    pairs = torch.cartesian_prod(torch.arange(1, 101), torch.arange(1, 101))
    rows_BTK, factor_BTK = Ngrams(1000, 1, 2).rows(pairs, 1)
    counts = rows_BTK.flatten().bincount(minlength=1000).float()
    # 10 a row on average, and as uneven as chance has it: a variance of 10.
    assert 8.5 < float(counts.var()) < 11.5
    assert abs(float(factor_BTK.sign().mean())) < 0.03
    # The same tokens the other way round are other n-grams.
    assert float((rows_BTK == Ngrams(1000, 1, 2).rows(pairs.flip(1), 1)[0]).float().mean()) < 0.02


def test_signed_rows_of_all_orders_are_added_up() -> None:
    made, tokens_BS = ngrams(3), tokens(2, 8)
    rows_BTK, factor_BTK = made.rows(tokens_BS, 6)
    sums_BTE = sum_rows(made.weight, rows_BTK, factor_BTK)
    expected_BTE = (made.weight[rows_BTK] * factor_BTK[..., None]).sum(2)
    torch.testing.assert_close(sums_BTE, expected_BTE)
    assert torch.equal(sum_rows(Ngrams(50, 4, 3).weight, rows_BTK, factor_BTK),
                       torch.zeros(2, 6, 4))  # fmt: skip
