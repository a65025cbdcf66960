"""The most probable words against a stable sort of the full softmax."""

from __future__ import annotations

import pytest
import torch

from thinwire.errors import UserError
from thinwire.inference import candidates as module

SETTINGS = [
    {},
    {"tied": True},
    {"loss": "full"},
    {"loss": "nce"},
    {"loss": "adaptive"},
    {"kind": "transformer"},
    {"kind": "causal_conv"},
]
PROMPTS = ["", "The cat", "The dog sees the", "The cat sees the dog.\nThe"]


def sorted_softmax(model, prompt: str) -> tuple[list[float], list[int]]:
    """The whole distribution, from the model's hidden states alone, in falling order."""
    tokenizer = model.tokenizer
    lines = [tokenizer.encode(line) for line in prompt.split("\n")]
    ids = [tokenizer.eos_id]
    for line in lines[:-1]:
        ids += [*line, tokenizer.eos_id]
    hidden_1TD, _ = model.model.hidden(torch.tensor([[*ids, *lines[-1]]]), None)
    values_V, ids_V = model.model.output.distribution(hidden_1TD[:, -1])[0].sort(
        descending=True, stable=True
    )
    return values_V.tolist(), ids_V.tolist()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equal_to_sorting_the_full_softmax(trained, settings: dict) -> None:
    model = trained(**settings)
    for prompt in PROMPTS:
        logprobs, ids = sorted_softmax(model, prompt)
        found = model.next(prompt, 10)
        assert [one.logprob for one in found] == pytest.approx(logprobs[:10], rel=1e-5)
        assert [one.id for one in found] == ids[:10]
        assert [one.word for one in found] == [model.tokenizer.token(id) for id in ids[:10]]


def test_many_prompts_are_each_on_its_own(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    monkeypatch.setattr(module, "CHUNK_LOGPROBS", 3 * model.model.vocab_size)
    found = model.next(PROMPTS * 2, 3)
    alone = [model.next(prompt, 3) for prompt in PROMPTS] * 2
    assert [[one.id for one in row] for row in found] == [[one.id for one in r] for r in alone]
    assert [one.logprob for row in found for one in row] == pytest.approx(
        [one.logprob for row in alone for one in row], rel=1e-5
    )
    assert model.next([], 3) == []


def test_the_whole_vocabulary_sums_to_one(trained) -> None:
    model = trained()
    found = model.next("The cat", 10**6)
    assert sorted(one.id for one in found) == list(range(model.model.vocab_size))
    assert float(torch.tensor([one.logprob for one in found]).exp().sum()) == pytest.approx(1.0)


def test_words_only(trained) -> None:
    model = trained()
    everything = model.next("The cat sees the dog.", 10**6)
    words = model.next("The cat sees the dog.", 10**6, words_only=True)
    assert [one.word for one in everything if one.word not in ("</s>", "<unk>")] == [
        one.word for one in words
    ]
    assert everything[0].word == "</s>"  # as the toy text has it
    assert len(words) == len(everything) - 2


def test_equally_probable_words_come_by_id() -> None:
    values_nV = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]])
    for k in range(1, 7):
        found, ids = module._stable_top(values_nV.clone(), k)
        sorted_nV, order_nV = values_nV.sort(dim=1, descending=True, stable=True)
        assert torch.equal(found, sorted_nV[:, :k])
        assert torch.equal(ids, order_nV[:, :k])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_given_words(trained, settings: dict) -> None:
    model = trained(**settings)
    words = ["cat", "dog", "xyzzy", "</s>"]
    ids = [*(model.tokenizer.encode(word)[0] for word in words[:3]), model.tokenizer.eos_id]
    expected = []
    for prompt in PROMPTS:
        by_id = dict(zip(*reversed(sorted_softmax(model, prompt)), strict=True))
        expected.append([by_id[id] for id in ids])
    assert torch.allclose(model.logprobs(PROMPTS, words), torch.tensor(expected), atol=1e-5)
    assert model.logprobs(PROMPTS[1], ids).tolist() == pytest.approx(expected[1], rel=1e-5)
    assert model.logprobs([], words).shape == (0, 4)


def test_memory_holds_a_few_prompts_by_the_vocabulary(
    trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained()
    seen = []
    real = model.model.output.distribution
    monkeypatch.setattr(module, "CHUNK_LOGPROBS", 2 * model.model.vocab_size)
    monkeypatch.setattr(
        model.model.output, "distribution", lambda hidden: seen.append(len(hidden)) or real(hidden)
    )
    model.next(PROMPTS * 3, 2)
    model.logprobs(PROMPTS * 3, ["cat"])
    assert seen == [2] * 12


def test_what_is_refused(trained) -> None:
    with pytest.raises(UserError, match="the 0 most probable words were asked for"):
        trained().next("The", 0)
    with pytest.raises(UserError, match="'a b' is 2 tokens"):
        trained().logprobs("The", ["a b"])
