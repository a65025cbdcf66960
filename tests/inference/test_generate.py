"""Generated text: repeatable, cut as asked, and never an unknown word."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from thinwire.data.tokenizer_json import bytes_tokenizer, to_json
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.generate import Sampling, choose, spelt
from thinwire.seeds import torch_generator

P = torch.tensor([0.05, 0.5, 0.0, 0.3, 0.15], dtype=torch.float64)


def drawn(**settings: float) -> set[int]:
    generator = torch_generator(0, "test")
    return {choose(P.log(), Sampling(**settings), generator) for _ in range(300)}  # type: ignore[arg-type]


def test_what_may_be_drawn() -> None:
    assert drawn(temperature=0.0) == {1}
    assert drawn(temperature=1.0) == {0, 1, 3, 4}
    assert drawn(temperature=1e-9) == {1}
    assert drawn(temperature=1e9) == {0, 1, 3, 4}
    assert drawn(temperature=1.0, top_k=1) == {1}
    assert drawn(temperature=1.0, top_k=2) == {1, 3}
    assert drawn(temperature=1.0, top_k=99) == {0, 1, 3, 4}
    assert drawn(temperature=1.0, top_p=1e-9) == {1}
    assert drawn(temperature=1.0, top_p=0.49) == {1}
    assert drawn(temperature=1.0, top_p=0.51) == {1, 3}
    assert drawn(temperature=1.0, top_p=0.81) == {1, 3, 4}
    assert drawn(temperature=1.0, top_p=0.9, top_k=2) == {1, 3}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("settings", [{}, {"top_k": 4}, {"top_p": 0.9999}])
def test_how_often_it_is_drawn(temperature: float, settings: dict) -> None:
    sampling, generator = Sampling(temperature=temperature, **settings), torch_generator(1, "test")
    words = [choose(P.log(), sampling, generator) for _ in range(4000)]
    expected = P ** (1 / temperature) / (P ** (1 / temperature)).sum()
    found = torch.bincount(torch.tensor(words), minlength=len(P)) / len(words)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "transformer"},
        {"kind": "causal_conv"},
        {"context": "line"},
        {"kind": "transformer", "context": "line"},
        {"loss": "adaptive"},
        {"tied": True},
        {"ngrams": 3},
    ],
    ids=str,
)
def test_it_goes_on_from_the_prompt_without_unknown_words(trained, settings: dict) -> None:
    model = trained(**settings)
    text = model.generate("The cat sees", tokens=150, temperature=1.5)
    assert text.startswith("The cat sees")
    assert "<unk>" not in text and "</s>" not in text
    assert text == model.generate("The cat sees", tokens=150, temperature=1.5)
    assert text != model.generate("The cat sees", tokens=150, temperature=1.5, seed=2)
    ids = [id for line in model.tokenizer.encode_lines(text.split("\n")) for id in line]
    assert len(ids) - 1 == 3 + 150  # the last line's end was not written


@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
@pytest.mark.parametrize("context", ["text", "line"])
@pytest.mark.parametrize("ngrams", [0, 3])
def test_greedy_is_the_most_probable_word_each_time(
    trained, kind: str, context: str, ngrams: int
) -> None:
    model = trained(kind=kind, context=context, ngrams=ngrams)
    tokenizer, network = model.tokenizer, model.model
    eos = tokenizer.eos_id
    prompt = "The dog hears the cat.\nThe bird"
    written = model.generate(prompt, tokens=30, temperature=0)
    lines = tokenizer.encode_lines(written.split("\n"))
    ids = [id for line in lines for id in line.tolist()][:-1]
    known = sum(map(len, tokenizer.encode_lines(prompt.split("\n")))) - 1
    for t in range(known, len(ids)):
        inputs = [eos, *ids[:t]]
        if context == "line":
            inputs = inputs[len(inputs) - 1 - inputs[::-1].index(eos) :]
        if kind == "transformer":
            inputs = inputs[-model.run.config.data.length :]
        hidden_1TD, _ = network.hidden(torch.tensor([inputs]), None)
        logprob_V = network.output.distribution(hidden_1TD[:, -1])[0]
        logprob_V[tokenizer.unk_id] = -torch.inf
        assert ids[t] == int(logprob_V.argmax())


def test_it_comes_in_pieces(trained) -> None:
    model = trained()
    pieces = list(model.stream("The cat", tokens=40))
    assert pieces[0] == "The cat"
    assert len(pieces) > 40
    assert "".join(pieces) == model.generate("The cat", tokens=40)
    shorter = [model.generate("The cat", tokens=n) for n in range(0, 40, 8)]
    assert all(long.startswith(short) for short, long in pairwise(shorter))


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("", ""),
        ("The cat ", "The cat"),  # the space comes with the next word
        ("An xyzzy,  and\n", "An xyzzy,  and\n"),
        ("\n", "\n"),
        ("one\n\n  two", "one\n\n  two"),
    ],
)
def test_the_prompt_is_shown_as_it_is(trained, prompt: str, shown: str) -> None:
    assert trained().generate(prompt, tokens=0) == shown
    text = trained().generate(prompt, tokens=5)
    assert text.startswith(shown)
    assert "  " not in text.removeprefix(shown)


@pytest.fixture
def by_bytes(tmp_path: Path) -> Tokenizer:
    file = tmp_path / "tokenizer.json"
    file.write_text(to_json(bytes_tokenizer()), encoding="utf-8")
    return Tokenizer.load(file)


def test_a_character_of_several_bytes_comes_whole(by_bytes: Tokenizer) -> None:
    text = "größe 🦆\n\n鴨\n"
    ids = [id for line in by_bytes.encode_lines(text.split("\n")[:-1]) for id in line.tolist()]
    pieces = list(spelt(by_bytes, [], "", ids))
    assert pieces == list(text)


def test_a_character_that_is_never_whole_is_not_lost(by_bytes: Tokenizer) -> None:
    duck = by_bytes.encode("🦆")
    ids = [*by_bytes.encode("a"), *duck[:2], *by_bytes.encode("b"), *duck[:3]]
    assert "".join(spelt(by_bytes, [], "", ids)).replace("\ufffd", "") == "ab"
    assert "".join(spelt(by_bytes, [], "", [*duck[:2], by_bytes.eos_id])).endswith("\n")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"top_p": 1.1}, "top-p is 1.1"),
        ({"tokens": -1}, "-1 tokens"),
    ],
)
def test_settings_out_of_range(trained, settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        trained().generate("The", **settings)


def test_no_temperature_is_too_low() -> None:
    logprob_V = torch.tensor([-3.0, -1.0, -2.0, -float("inf")], dtype=torch.float64)
    for temperature in (1e-310, 5e-324, 1e-200):
        sampling = Sampling(temperature=temperature)
        assert choose(logprob_V, sampling, torch.Generator().manual_seed(1)) == 1
