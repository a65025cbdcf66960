"""A language model for pyctcdecode's beam search, with the methods of its `AbstractLanguageModel`.

    from pyctcdecode import BeamSearchDecoderCTC, Alphabet
    decoder = BeamSearchDecoderCTC(Alphabet.build_alphabet(labels), WordModel(thinwire.load("run")))

Scores are in nats, multiplied by `alpha`, and `beta` is added for each word, as in pyctcdecode's
own `LanguageModel`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from thinwire.inference.trained_model import TrainedModel
from thinwire.models.contract import State

# As in pyctcdecode's own model: a longer unfinished word is less likely to become a word.
TYPICAL_LENGTH = 6
# pyctcdecode merges beams that end in the same ORDER - 1 words; this large, it merges none.
ORDER = 1 << 20


class WordModel:
    """A trained model with pyctcdecode's interface.

    Args:
        model: a trained model, from `thinwire.load`; its tokens should be words.
        alpha: weight of the language model.
        beta: added to the score for each word.
        unk_score_offset: added to the log-probability of words outside the vocabulary.
        score_boundary: whether the end of the line is scored after the last word.
    """

    def __init__(
        self,
        model: TrainedModel,
        alpha: float = 0.5,
        beta: float = 1.5,
        unk_score_offset: float = -10.0,
        score_boundary: bool = True,
    ) -> None:
        self._model, self._tokenizer = model, model.tokenizer
        self.alpha, self.beta = alpha, beta
        self.unk_score_offset, self.score_boundary = unk_score_offset, score_boundary
        size = self._tokenizer.vocab_size
        self._words = sorted(self._tokenizer.token(id) for id in range(size))

    @property
    def order(self) -> int:
        """Larger than any text, because the model's context is not limited to n words."""
        return ORDER

    def get_start_state(self) -> State:
        """The state at the beginning of a line."""
        return self._model.start()

    def score_partial_token(self, partial_token: str) -> float:
        """The penalty of an unfinished word that no word of the vocabulary begins with; else 0."""
        index = bisect_left(self._words, partial_token)
        if index < len(self._words) and self._words[index].startswith(partial_token):
            return 0.0
        return self.unk_score_offset * max(1.0, len(partial_token) / TYPICAL_LENGTH)

    def score(
        self, prev_state: State, word: str, is_last_word: bool = False
    ) -> tuple[float, State]:
        """The weighted score of a word after a state, and the state after the word."""
        ids = self._tokenizer.encode(word)
        state, nats = prev_state, 0.0
        for id in ids:
            state, logprob = self._model.step(state, id)
            nats += logprob
        if self._tokenizer.unk_id in ids:
            nats += self.unk_score_offset
        if is_last_word and self.score_boundary:
            nats += self._model.step(state, self._tokenizer.eos_id)[1]
        return self.alpha * nats + self.beta, state

    def reset_params(self, **params: Any) -> None:
        """Set those of `alpha`, `beta`, `unk_score_offset` and `score_boundary` that are given."""
        for name in ("alpha", "beta", "unk_score_offset", "score_boundary"):
            if params.get(name) is not None:
                setattr(self, name, params[name])
