from __future__ import annotations

import pytest

from .conftest import Trained
from .stand_ins import CTCDecoderLM, CTCDecoderLMState, adapter


def test_words_add_up_to_the_line(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    torchaudio = adapter(
        monkeypatch, "torchaudio", "torchaudio.models.decoder",
        CTCDecoderLM=CTCDecoderLM, CTCDecoderLMState=CTCDecoderLMState,
    )  # fmt: skip
    model = trained()
    words = ["a", "dog", "sees", "the", "cat", "."]
    lm = torchaudio.DecoderLM(model, words)
    for text in ("the cat sees a dog .", "a dog .", "the cat sees a dog ."):
        state, total = lm.start(False), 0.0
        for word in text.split():
            before = state
            state, score = lm.score(before, words.index(word))
            assert lm.score(before, words.index(word)) == (state, score)
            total += score
        after, score = lm.finish(state)
        assert after is state
        assert total + score == pytest.approx(model.score(text).logprob, rel=1e-5)
