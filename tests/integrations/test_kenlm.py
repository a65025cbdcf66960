from __future__ import annotations

from math import log
from pathlib import Path

import pytest
import torch

import thinwire.integrations.kenlm as ours
from thinwire.errors import UserError

from .conftest import Trained

KINDS = ["lstm", "transformer"]
TEXT = "the cat sees a dog ."


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [TEXT, "", "qwertz the"])
def test_a_sentence_has_the_score_of_score(trained: Trained, kind: str, text: str) -> None:
    model = trained(kind=kind)
    found = ours.Model(model)
    nats = model.score(text).logprob
    assert found.score(text) == pytest.approx(nats / log(10), rel=1e-5)
    assert found.score(text, bos=True, eos=True) == found.score(text)
    assert found.perplexity(text) == pytest.approx(model.perplexity(text), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_end(trained: Trained, kind: str) -> None:
    model = trained(kind=kind)
    found = ours.Model(model)
    *words, end = found.full_scores(TEXT)
    assert found.score(TEXT, eos=False) == pytest.approx(sum(score for score, _, _ in words))
    assert end[0] == pytest.approx(found.score(TEXT) - found.score(TEXT, eos=False))


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_beginning(trained: Trained, kind: str) -> None:
    model = trained(kind=kind)
    ids = model.tokenizer.encode(TEXT)
    counts_V = model.run.counts_V().double().clamp(min=1)
    expected = [float((counts_V[ids[0]] / counts_V.sum()).log10())]
    hidden_1TD, _ = model.model.hidden(torch.tensor([ids[:-1]]), None)
    logprob_TV = model.model.output.distribution(hidden_1TD[0])
    expected += [float(row_V[id]) / log(10) for row_V, id in zip(logprob_TV, ids[1:], strict=True)]
    found = [score for score, _, _ in ours.Model(model).full_scores(TEXT, bos=False, eos=False)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_lengths_and_unknown_words(trained: Trained) -> None:
    found = list(ours.Model(trained()).full_scores("the qwertz"))
    assert [(length, oov) for _, length, oov in found] == [(2, False), (3, True), (4, False)]
    found = list(ours.Model(trained()).full_scores("the qwertz", bos=False, eos=False))
    assert [(length, oov) for _, length, oov in found] == [(1, False), (2, True)]
    assert list(ours.Model(trained()).full_scores("", bos=False, eos=False)) == []


def test_words_of_the_vocabulary(trained: Trained) -> None:
    model = ours.Model(trained())
    assert "the" in model and "</s>" in model and "qwertz" not in model


def test_states(trained: Trained) -> None:
    model = ours.Model(trained())
    state, after = ours.State(), ours.State()
    model.BeginSentenceWrite(state)
    begin, total = state, 0.0
    for word in [*TEXT.split(), "</s>"]:
        total += model.BaseScore(state, word, after)
        state, after = after, ours.State()
    assert total == pytest.approx(model.score(TEXT), rel=1e-5)
    again = ours.State()
    model.BeginSentenceWrite(again)
    assert again == begin and hash(again) == hash(begin) and again != state
    full = model.BaseFullScore(begin, "qwertz", after)
    assert (full.ngram_length, full.oov) == (2, True)
    with pytest.raises(UserError, match="begin it with BeginSentenceWrite"):
        model.BaseScore(ours.State(), "the", after)


def test_a_run_folder_will_do(trained: Trained) -> None:
    run = trained().run.path
    assert ours.LanguageModel(str(run)).score(TEXT) == ours.Model(Path(run)).score(TEXT)


def test_its_names_are_those_of_kenlm() -> None:
    theirs = pytest.importorskip("kenlm")
    for name in ("Model", "LanguageModel", "State", "FullScoreReturn"):
        assert hasattr(theirs, name) and hasattr(ours, name)
    for name in ("score", "full_scores", "perplexity", "BeginSentenceWrite", "BaseScore", "order"):
        assert hasattr(theirs.Model, name) and hasattr(ours.Model, name)


def test_against_kenlm_itself(tmp_path: Path, trained: Trained) -> None:
    """An ARPA file of the training text's shares: without context both say the same."""
    theirs = pytest.importorskip("kenlm")
    model = trained()
    counts_V = model.run.counts_V().double().clamp(min=1)
    log10_V = (counts_V / counts_V.sum()).log10().tolist()
    words = [model.tokenizer.token(id) for id in range(len(log10_V))]
    lines = [f"{p:.6f}\t{word}\t0" for p, word in zip(log10_V, words, strict=True)]
    arpa = tmp_path / "unigrams.arpa"
    head = f"\\data\\\nngram 1={len(words) + 1}\nngram 2=1\n\n\\1-grams:\n-99\t<s>\t0\n"
    tail = "\n\n\\2-grams:\n-1\tthe cat\n\n\\end\\\n"  # KenLM reads no model without bigrams
    arpa.write_text(head + "\n".join(lines) + tail, encoding="utf-8")
    other = theirs.Model(str(arpa))
    found = ours.Model(model)
    for word in ("the", "cat", "qwertz"):
        expected = other.score(word, bos=False, eos=False)
        assert found.score(word, bos=False, eos=False) == pytest.approx(expected, abs=1e-4)
