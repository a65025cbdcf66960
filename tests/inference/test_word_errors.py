"""Word errors against a plain dynamic programme."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from thinwire.inference.word_errors import word_errors

WORDS = st.lists(st.sampled_from("abcd"), max_size=7)


def plain(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        replaced = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(replaced, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(a), len(b))


@given(WORDS, st.lists(WORDS, min_size=1, max_size=5))
def test_equal_to_the_plain_programme(reference: list[str], hypotheses: list[list[str]]) -> None:
    expected = [plain(tuple(reference), tuple(words)) for words in hypotheses]
    assert word_errors(reference, hypotheses).tolist() == expected


def test_by_hand() -> None:
    found = word_errors(["the", "cat", "sat"], [[], ["the"], ["a", "the", "cat", "sat", "down"]])
    assert found.tolist() == [3, 2, 2]
