"""Merging, ranking and tuning against what can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from thinwire.data.tokenizer_json import train_bpe, word_tokenizer_json
from thinwire.data.tokenizers import Tokenizer
from thinwire.inference.nbest import NBest
from thinwire.inference.rescore import (
    BONUSES,
    WEIGHTS,
    count_errors,
    errors_of,
    merged,
    ranked,
    tokens_per_word,
    tuned,
    words_from_tokens,
)

LISTS = NBest(
    keys=["a-1", "b-1", "a-2", "b-2", "b-3"],
    texts=["the cat sat", "dog", "a cat sat", "the dogs", "the dog"],
    utterances={"a": [0, 2], "b": [1, 3, 4]},
    first_pass_H=np.array([-1.0, -2.0, -1.5, -2.5, -2.5]),
)
REFERENCES = {"a": ["a", "cat", "sat"], "b": ["the", "dog"]}
LOGPROB_H = np.array([-9.0, -5.0, -8.0, -7.0, -6.0])
LENGTH_H = np.array([3.0, 1.0, 3.0, 2.0, 2.0])


def test_merging_and_ranking() -> None:
    score_H = merged(LISTS, LOGPROB_H, LENGTH_H, 1.0, 0.0)
    assert score_H.tolist() == [-10.0, -7.0, -9.5, -9.5, -8.5]
    assert list(ranked(LISTS, score_H)) == [2, 0, 1, 4, 3]
    score_H = merged(LISTS, LOGPROB_H, LENGTH_H, 1.0, 2.0)
    assert score_H.tolist() == [-4.0, -5.0, -3.5, -5.5, -4.5]
    assert list(ranked(LISTS, score_H)) == [2, 0, 4, 1, 3]
    # Equal scores keep the order of the list.
    assert list(ranked(LISTS, np.zeros(5))) == [0, 2, 1, 3, 4]


def test_errors_before_and_after() -> None:
    errors_H = errors_of(LISTS, REFERENCES)
    assert errors_H.tolist() == [1, 1, 0, 1, 0]
    found = count_errors(LISTS, REFERENCES, errors_H, merged(LISTS, LOGPROB_H, LENGTH_H, 1.0, 0.0))
    assert (found.num_words, found.first, found.chosen, found.oracle) == (5, 2, 1, 0)


def test_tuning_is_the_best_of_the_whole_grid() -> None:
    rng = np.random.default_rng(1)
    U, G = 20, 6
    lists = NBest(
        keys=[],
        texts=["x"] * (U * G),
        utterances={str(u): range(u * G, (u + 1) * G) for u in range(U)},
        first_pass_H=rng.normal(size=U * G),
    )
    logprob_H, length_H = rng.normal(size=U * G) * 3, rng.integers(1, 5, U * G).astype(float)
    errors_H = rng.integers(0, 9, U * G)

    def errors(weight: float, bonus: float) -> int:
        score = (lists.first_pass_H + weight * logprob_H + bonus * length_H).reshape(U, G)
        return int(errors_H.reshape(U, G)[np.arange(U), score.argmax(1)].sum())

    grid = [errors(w, w * b) for w in WEIGHTS for b in BONUSES]
    assert errors(*tuned(lists, logprob_H, length_H, errors_H)) == min(grid)
    assert min(grid) < errors(0.0, 0.0)
    # Where nothing helps, nothing is added.
    assert tuned(lists, logprob_H, length_H, np.ones_like(errors_H)) == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["word", "space", "bpe"])
def test_tokens_of_words(kind: str) -> None:
    lines = ["don't stop well-known places", "the cat sat"]
    if kind == "bpe":
        import json

        tokenizer = Tokenizer.parse(json.dumps(train_bpe(iter(lines * 9), 280)), "bpe")
    else:
        words = ["<unk>", "</s>", "don't", "stop", "well", "-", "known", "the", "cat"]
        tokenizer = Tokenizer.parse(word_tokenizer_json(kind, words), kind)
    for line in [*lines, ""]:
        words = line.split()
        found = tokens_per_word(tokenizer, words)
        assert len(found) == len(words) and sum(found) == len(tokenizer.encode(line))
        assert all(number >= 1 for number in found)
    if kind == "word":
        assert tokens_per_word(tokenizer, lines[0].split()) == [1, 1, 3, 1]
        logprob_T = -np.arange(1.0, 8.0)
        assert words_from_tokens(tokenizer, lines[0].split(), logprob_T) == [1, 2, 12, 6, 7]
