"""Scores of lines against a reference that computes them token by token."""

from __future__ import annotations

from itertools import chain, repeat
from math import exp

import pytest
import torch

from thinwire.inference import score as module
from thinwire.inference.score import Score
from thinwire.inference.trained_model import TrainedModel
from thinwire.runs import evaluation

LINES = [
    "The cat sees the dog.",
    "",
    "The birdlet hears the xyzzy, they say.",  # a word that the toy text does not have
    "dog " * 40,
    "Ελλάδα 🦆",
    "   ",
    "!",
    "<unk> and <unk>",
]


def reference(trained: TrainedModel, line: str) -> Score:
    """ln p of each token after all before it, from an end-of-line on, and of the line's end."""
    tokenizer, model = trained.tokenizer, trained.model
    ids = [*tokenizer.encode(line), tokenizer.eos_id]
    window = len(ids) if model.body.carries_state else trained.run.config.data.length
    logprob = 0.0
    for t, target in enumerate(ids):
        # Windows follow at half their length; a token is scored in the first that holds it.
        start = max(0, -(-(t + 1 - window) // (window // 2 or 1))) * (window // 2)
        inputs = [tokenizer.eos_id, *ids][start : t + 1]
        hidden_1TD, _ = model.hidden(torch.tensor([inputs]), None)
        logprob += float(model.output.distribution(hidden_1TD[:, -1])[0, target])
    return Score(logprob, len(ids), ids.count(tokenizer.unk_id))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True},
        {"loss": "full"},
        {"loss": "nce"},
        {"loss": "adaptive"},
        {"kind": "transformer"},
        {"kind": "causal_conv"},
        {"context": "line"},
    ],
    ids=str,
)
def test_is_the_sum_over_positions(trained, settings: dict) -> None:
    model = trained(**settings)
    found = list(model.score_lines(LINES))
    expected = [reference(model, line) for line in LINES]
    for one, other in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, rel=1e-5)
        assert (one.num_tokens, one.num_unknown) == (other.num_tokens, other.num_unknown)
    assert [one.num_unknown for one in found][:3] == [0, 0, 1]
    assert found[1].num_tokens == 1  # the end of an empty line


@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
def test_no_score_depends_on_its_neighbours(
    trained, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(kind=kind)
    alone = [model.score(line) for line in LINES]
    lines = [*LINES, *reversed(LINES), *LINES]
    expected = [*alone, *reversed(alone), *alone]
    for size in (1, 3, 10**6):
        monkeypatch.setattr(module, "POOL_LINES", size)
        monkeypatch.setattr(evaluation, "CHUNK_POSITIONS", 20 * size)
        for one, other in zip(model.score_lines(lines), expected, strict=True):
            assert one.logprob == pytest.approx(other.logprob, rel=1e-5)
            assert one.num_tokens == other.num_tokens


def test_lines_are_taken_as_they_are_needed(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL_LINES", 4)
    endless = chain.from_iterable(repeat(LINES))
    scores = trained().score_lines(endless)
    assert next(scores) == next(trained().score_lines(LINES[:4]))
    assert list(trained().score_lines([])) == []


def test_long_lines_fill_a_pool(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL_CHARACTERS", 10)
    found = list(trained().score_lines(LINES))
    expected = [trained().score(line) for line in LINES]
    assert [s.logprob for s in found] == pytest.approx([s.logprob for s in expected], rel=1e-5)


def test_a_text_is_the_sum_of_its_lines(trained) -> None:
    model = trained()
    lines = [model.score(line) for line in LINES]
    text = model.score("\n".join(LINES) + "\n")
    assert text.logprob == pytest.approx(sum(line.logprob for line in lines), rel=1e-5)
    assert text.num_tokens == sum(line.num_tokens for line in lines)
    assert text.num_unknown == sum(line.num_unknown for line in lines)
    assert model.perplexity("\n".join(LINES)) == pytest.approx(
        exp(-text.logprob / text.num_tokens), rel=1e-5
    )
    assert model.score("") == model.score("\n")


def test_a_perplexity_beyond_numbers_is_infinite() -> None:
    assert Score(-1e6, 1, 0).perplexity == float("inf")


def test_probabilities_of_all_lines_of_two_tokens_sum_to_those_of_their_first(trained) -> None:
    """Over all words w: p(w, end) <= p(w), and over all first words p sums to one."""
    model = trained()
    words = [model.tokenizer.token(id) for id in range(model.tokenizer.vocab_size)]
    words = [word for word in words if word != "</s>"]
    total = sum(exp(score.logprob) for score in model.score_lines(words))
    assert 0 < total < 1


def test_a_string_is_scored_as_a_file_is(trained) -> None:
    model = trained()
    expected = model.score("The cat sees the dog.\nThe dog.")
    assert model.score("\ufeffThe cat sees the dog.\r\nThe dog.\r\n") == expected
    (line,) = model.score_lines(["The dog.\r\n"])
    assert line == model.score("The dog.")
