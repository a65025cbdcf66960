from __future__ import annotations

import numpy as np
import pytest

from thinwire.integrations.pyctcdecode import WordModel

from .conftest import Trained

TEXT = "the cat sees a dog ."


def test_words_add_up_to_the_line(trained: Trained) -> None:
    model = trained()
    lm = WordModel(model, alpha=1.0, beta=0.0, unk_score_offset=0.0)
    words, state, total = TEXT.split(), lm.get_start_state(), 0.0
    for place, word in enumerate(words):
        score, state = lm.score(state, word, is_last_word=place == len(words) - 1)
        total += score
    assert total == pytest.approx(model.score(TEXT).logprob, rel=1e-5)


def test_weights(trained: Trained) -> None:
    model = trained()
    plain = WordModel(model, alpha=1.0, beta=0.0, unk_score_offset=-10.0, score_boundary=False)
    state = plain.get_start_state()
    nats = float(model.logprobs("", ["the"])[0])
    assert plain.score(state, "the", is_last_word=True)[0] == pytest.approx(nats, rel=1e-5)
    unknown = float(model.logprobs("", [model.tokenizer.unk_id or 0])[0])
    assert plain.score(state, "qwertz")[0] == pytest.approx(unknown - 10.0, rel=1e-5)
    plain.reset_params(alpha=0.5, beta=2.0, unk_score_offset=None)
    assert plain.score(state, "the")[0] == pytest.approx(0.5 * nats + 2.0, rel=1e-5)
    assert plain.unk_score_offset == -10.0


def test_unfinished_words(trained: Trained) -> None:
    lm = WordModel(trained(), unk_score_offset=-12.0)
    assert lm.score_partial_token("th") == 0.0
    assert lm.score_partial_token("the") == 0.0
    assert lm.score_partial_token("qwe") == -12.0
    assert lm.score_partial_token("qwertzuio") == -18.0


def test_their_decoder_takes_it(trained: Trained) -> None:
    pyctcdecode = pytest.importorskip("pyctcdecode")
    model = trained()
    labels = ["", " ", *"abcdefghijklmnopqrstuvwxyz"]
    # Sounds between "the" and "thx": the language model decides.
    spoken = "th?"
    logits = np.full((2 * len(spoken), len(labels)), -20.0)
    for place, letter in enumerate(spoken):
        for one in "ex" if letter == "?" else letter:
            logits[2 * place, labels.index(one)] = 5.0 if one == "x" else 4.5
        logits[2 * place + 1, 0] = 5.0
    alphabet = pyctcdecode.Alphabet.build_alphabet(labels)
    without = pyctcdecode.BeamSearchDecoderCTC(alphabet, None)
    with_model = pyctcdecode.BeamSearchDecoderCTC(alphabet, WordModel(model))
    assert without.decode(logits) == "thx"
    assert with_model.decode(logits) == "the"
