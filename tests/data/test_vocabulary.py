from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.data.tokenizer_json import EOS, UNK
from thinwire.data.vocabulary import (
    Tally,
    all_tokens,
    choose_words,
    fixed_words,
    given_tokens,
    read_words,
)
from thinwire.errors import UserError


def tally_of(counts: dict[str, int], folder: Path = Path(), types_in_memory: int = 100) -> Tally:
    tally = Tally(folder, types_in_memory)
    tally.add(counts.keys(), counts.values())
    return tally


COUNTS = {"b": 3, "a": 3, "c": 9, "d": 2, "e": 1, "f": 1, EOS: 5}


def test_ids_run_by_falling_frequency_then_by_word() -> None:
    found = choose_words(tally_of(COUNTS), size=None, min_count=None)
    assert found.tokens == ["c", EOS, "a", "b", UNK, "d"]
    assert found.counts == [9, 5, 3, 3, 2, 2]


def test_size_counts_every_id() -> None:
    found = choose_words(tally_of(COUNTS), size=4, min_count=None)
    assert found.tokens == ["c", UNK, EOS, "a"]
    assert found.counts == [9, 7, 5, 3]
    everything = choose_words(tally_of(COUNTS), size=100, min_count=None)
    assert everything.tokens == ["c", EOS, "a", "b", "d", "e", "f", UNK]


def test_size_and_min_count_hold_together() -> None:
    found = choose_words(tally_of(COUNTS), size=5, min_count=3)
    assert found.tokens == ["c", EOS, UNK, "a", "b"]


def test_says_that_not_all_words_get_an_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("thinwire.data.vocabulary.MOST_WORDS", 4)
    assert len(choose_words(tally_of(COUNTS), size=None, min_count=None).tokens) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "only the commonest 2 words get ids" in said


def test_literal_unknown_words_count_as_unknown() -> None:
    found = choose_words(tally_of(COUNTS | {UNK: 10}), size=None, min_count=1)
    assert (found.tokens[0], found.counts[0]) == (UNK, 10)


def test_a_fixed_list_is_kept_whole() -> None:
    found = fixed_words(tally_of(COUNTS), ["zebra", "a", "c"])
    assert found.tokens == ["c", UNK, EOS, "a", "zebra"]
    assert found.counts == [9, 7, 5, 3, 0]
    every = fixed_words(tally_of({"a": 1, EOS: 1}), ["~", "a"])
    assert every.tokens == [EOS, "a", "~", UNK]  # unused, <unk> comes last


def test_tokens_that_are_given_keep_their_ids() -> None:
    assert given_tokens(tally_of(COUNTS), ["x", UNK, "c", EOS], UNK).counts == [0, 10, 9, 5]
    assert all_tokens(tally_of({"y": 2}), ["x", "y"]).tokens == ["y", "x"]


@given(
    lists=st.lists(st.dictionaries(st.text("abc", max_size=3), st.integers(0, 9)), max_size=6),
    types_in_memory=st.integers(1, 10),
    size=st.one_of(st.none(), st.integers(3, 12)),
)
def test_files_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    lists: list[dict[str, int]],
    types_in_memory: int,
    size: int | None,
) -> None:
    tally = Tally(tmp_path_factory.mktemp("tally"), types_in_memory)
    expected: Counter[str] = Counter()
    for counts in lists:
        tally.add(counts.keys(), counts.values())
        expected.update(counts)
    in_memory = tally_of(dict(expected), types_in_memory=1000)
    chosen = choose_words(tally, size=size, min_count=None)
    assert chosen == choose_words(in_memory, size=size, min_count=None)
    assert sum(chosen.counts) == tally.total == expected.total()


def test_reads_a_list_of_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffone\r\n\r\n  two \none\nwell-known\n<unk>\n</s>\n".encode())
    words, never = read_words(path, "word")
    assert words == ["one", "two", "well-known", UNK, EOS]
    assert never == ["well-known"]
    assert read_words(path, "space")[1] == []


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"one\ntwo 2\n", r"line 2 of .* holds 2 words instead of one"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_refuses_what_is_no_list(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        read_words(path, "word")
    with pytest.raises(UserError, match="cannot be read"):
        read_words(tmp_path / "gone", "word")
