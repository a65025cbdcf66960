"""Words read one by one against whole lines, for every kind of model."""

from __future__ import annotations

import pytest
import torch

from thinwire.errors import UserError
from thinwire.inference.decoding import select, stack

SETTINGS = [
    {},
    {"tied": True},
    {"loss": "full"},
    {"loss": "nce"},
    {"loss": "adaptive"},
    {"kind": "transformer"},
    {"kind": "transformer", "context": "line"},
    {"kind": "causal_conv"},
    {"context": "line"},
    {"ngrams": 3},
    {"ngrams": 4, "context": "line", "tied": True},
    {"ngrams": 3, "kind": "transformer"},
    {"ngrams": 2, "kind": "causal_conv"},
]
LINES = ["The cat sees the dog.", "", "The xyzzy hears", "dog " * 40]


def ids_of(model, line: str) -> list[int]:
    return [*model.tokenizer.encode(line), model.tokenizer.eos_id]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_steps_add_up_to_the_score_of_the_line(trained, settings: dict) -> None:
    model = trained(**settings)
    for line in LINES:
        state, total = model.start(), 0.0
        for id in ids_of(model, line):
            state, logp = model.step(state, id)
            assert isinstance(logp, float)
            total += logp
        assert total == pytest.approx(model.score(line).logprob, rel=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_prompt_is_its_steps(trained, settings: dict) -> None:
    """Also where prompts of several lengths and lines are read side by side."""
    model = trained(**settings)
    prompts = [*LINES, "The dog.\nThe cat", "The cat\n", "the " * 11, "the " * 12, "the " * 13]
    together = model.start(prompts)
    assert len(together[0]) == len(prompts)
    for row, prompt in enumerate(prompts):
        alone = model.start(prompt)
        stepped = model.start()
        lines = [model.tokenizer.encode(line) for line in prompt.split("\n")]
        for id in [
            *(id for ids in lines[:-1] for id in [*ids, model.tokenizer.eos_id]),
            *lines[-1],
        ]:
            stepped = model.advance(stepped, id)
        expected = model.distribution(stepped)
        for state in (alone, select(together, [row])):
            assert torch.allclose(model.distribution(state), expected, atol=1e-5)
        # And they go on alike.
        after, logp = model.step(select(together, [row]), "dog")
        assert logp == pytest.approx(model.step(stepped, "dog")[1], rel=1e-5)
        assert torch.allclose(
            model.distribution(after),
            model.distribution(model.advance(stepped, "dog")),
            atol=1e-5,
        )


@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
@pytest.mark.parametrize("ngrams", [0, 3])
def test_beams_are_selected_and_stacked(trained, kind: str, ngrams: int) -> None:
    model = trained(kind=kind, ngrams=ngrams)
    begun = model.start("The cat sees")
    kept = [part.clone() for part in begun]
    beams = select(begun, [0, 0, 0])
    beams, logp_B = model.step(beams, ["the", "dog", "</s>"])
    singles = [model.step(begun, word) for word in ("the", "dog", "</s>")]
    assert logp_B.tolist() == pytest.approx([logp for _, logp in singles], rel=1e-5, abs=1e-5)
    again = stack([state for state, _ in singles])
    assert torch.allclose(model.distribution(beams), model.distribution(again), atol=1e-5)
    reversed_ = select(beams, torch.tensor([2, 1, 0]))
    assert torch.equal(model.distribution(reversed_)[0], model.distribution(beams)[2])
    # No state has been changed in place.
    assert all(torch.equal(part, copy) for part, copy in zip(begun, kept, strict=True))


def test_each_line_starts_afresh_where_it_did_in_training(trained) -> None:
    model = trained(context="line")
    ended = model.advance(model.start("The cat"), model.tokenizer.eos_id)
    assert torch.allclose(model.distribution(ended), model.distribution(model.start()))
    carried = trained()
    ended = carried.advance(carried.start("The cat"), carried.tokenizer.eos_id)
    assert not torch.allclose(carried.distribution(ended), carried.distribution(carried.start()))


def test_a_step_is_the_entry_of_the_distribution(trained) -> None:
    model = trained(loss="adaptive")
    state = model.start("The cat")
    (dog,) = model.tokenizer.encode("dog")
    assert model.step(state, "dog")[1] == pytest.approx(float(model.distribution(state)[0, dog]))
    assert float(model.distribution(state).exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("the cat", "'the cat' is 2 tokens, not one"),
        ("", "'' is 0 tokens"),
        (10**6, r"no token 1000000: the vocabulary has \d+ tokens"),
        (-1, "no token -1"),
        (["the", "cat"], "2 words were given for a state of 1"),
        ("a\0", "NUL"),
    ],
)
def test_what_is_no_word(trained, word, sentence: str) -> None:
    model = trained()
    with pytest.raises(UserError, match=sentence):
        model.step(model.start(), word)
