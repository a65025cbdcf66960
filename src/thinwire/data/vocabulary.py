"""Decides which words get an id, in order of decreasing frequency in the training split.

Words of equal count are ordered by their code points, so that the order depends on nothing else.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import regex

from thinwire.console import print_line
from thinwire.data.text import lines_of
from thinwire.data.tokenizer_json import EOS, PATTERNS, UNK
from thinwire.data.tokenizers import find_words
from thinwire.errors import UserError

TYPES_IN_MEMORY = 1 << 20  # about 200 MB
DEFAULT_MIN_COUNT = 2
MOST_WORDS = 1 << 20  # unless a size is asked for


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, and their counts in the training split."""

    tokens: list[str]
    counts: list[int]


class Tally:
    """Adds up counts of words from many lists; if memory is short, they go to sorted files."""

    def __init__(self, folder: Path, types_in_memory: int = TYPES_IN_MEMORY) -> None:
        self._folder, self._types_in_memory = folder, types_in_memory
        self._counts: dict[str, int] = {}
        self._files: list[Path] = []
        self.total = 0

    def add(self, words: Iterable[str], counts: Iterable[int]) -> None:
        """Add these counts of these words."""
        own = self._counts
        for word, count in zip(words, counts, strict=True):
            if count:
                own[word] = own.get(word, 0) + count
                self.total += count
                if len(own) > self._types_in_memory:
                    self._spill()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield every word once, with its total count."""
        if not self._files:
            yield from self._counts.items()
            return
        self._spill()
        merged = heapq.merge(*map(_read_counts, self._files))
        for word, same in groupby(merged, key=lambda pair: pair[0]):
            yield word, sum(count for _, count in same)

    @property
    def is_large(self) -> bool:
        """Whether some words are in files, not in memory."""
        return bool(self._files)

    def _spill(self) -> None:
        file = self._folder / f"tally-{len(self._files)}"
        with file.open("w", encoding="utf-8", newline="\n") as lines:
            for word in sorted(self._counts):
                # As JSON, because the tokens of some tokenizers contain line ends.
                lines.write(json.dumps((word, self._counts[word])) + "\n")
        self._files.append(file)
        self._counts.clear()


def choose_words(tally: Tally, *, size: int | None, min_count: int | None) -> Vocabulary:
    """The most frequent words: at most `size` ids, and no word with a count below `min_count`.

    With neither, the words that occur twice or more. `<unk>` and `</s>` have their place among the
    ids by their own counts, and count in `size`.
    """
    if min_count is None:
        min_count = DEFAULT_MIN_COUNT if size is None else 1
    special = {UNK: 0, EOS: 0}

    def candidates() -> Iterator[tuple[int, str]]:
        for word, count in tally:
            if word in special:
                special[word] = count
            elif count >= min_count:
                yield -count, word

    most = (MOST_WORDS if size is None else size) - len(special)
    # Both give the same result; the second needs memory only for the words that it returns.
    kept = heapq.nsmallest(most, candidates()) if tally.is_large else sorted(candidates())[:most]
    if size is None and len(kept) == most:
        print_line(
            f"only the commonest {most:,} words get ids: --vocab-size and --min-count change that"
        )
    special[UNK] = tally.total - special[EOS] + sum(count for count, _ in kept)
    return _in_order([*((word, -count) for count, word in kept), *special.items()])


def fixed_words(tally: Tally, words: Iterable[str]) -> Vocabulary:
    """Exactly these words, and `<unk>` and `</s>`."""
    counts = dict.fromkeys([*words, UNK, EOS], 0)
    counts |= {word: count for word, count in tally if word in counts}
    counts[UNK] += tally.total - sum(counts.values())
    return _in_order(counts.items())


def all_tokens(tally: Tally, tokens: Iterable[str]) -> Vocabulary:
    """Exactly these tokens, which can encode every text."""
    counts = dict.fromkeys(tokens, 0) | dict(tally)
    return _in_order(counts.items())


def given_tokens(tally: Tally, tokens: list[str], unk: str | None) -> Vocabulary:
    """A vocabulary of exactly these tokens, in this order."""
    counts = dict(tally)
    by_id = [counts.pop(token, 0) for token in tokens]
    if unk is not None:
        by_id[tokens.index(unk)] += sum(counts.values())
    return Vocabulary(tokens, by_id)


def read_words(path: Path, kind: str) -> tuple[list[str], list[str]]:
    """The words of a file with one word per line, and those that kind `kind` can never find."""
    try:
        # Read as bytes, because Python's text mode would treat a lone CR as a line end.
        lines = lines_of(path.read_bytes().decode(), f"the word list {path}")
    except OSError as error:
        raise UserError(f"the word list {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the word list {path} is not UTF-8: {error.reason}") from error
    words: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        found = _WORDS.findall(line)
        if len(found) > 1:
            raise UserError(f"line {number} of {path} holds {len(found)} words instead of one")
        words |= dict.fromkeys(found)
    if not words:
        raise UserError(f"the word list {path} is empty")
    never = [word for word in words if word != EOS and find_words(kind, word) != [word]]
    return list(words), never


_WORDS = regex.compile(PATTERNS["space"])


def _in_order(counts: Iterable[tuple[str, int]]) -> Vocabulary:
    def key(pair: tuple[str, int]) -> tuple[int, bool, str]:
        word, count = pair
        return -count, word == UNK and count == 0, word  # unused, `<unk>` comes last of all

    ordered = sorted(counts, key=key)
    return Vocabulary([word for word, _ in ordered], [count for _, count in ordered])


def _read_counts(path: Path) -> Iterator[tuple[str, int]]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            word, count = json.loads(line)
            yield word, count
