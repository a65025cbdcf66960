"""A language model for torchaudio's (Flashlight's) CTC decoder: `CTCDecoderLM`.

    lm = DecoderLM(thinwire.load("run"), words)
    decoder = ctc_decoder(lexicon, tokens, lm=lm, lm_dict="words.txt", lm_weight=2)

`words` are the words of the decoder in the order of its indices: the lines of its `lm_dict`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchaudio.models.decoder import CTCDecoderLM, CTCDecoderLMState

from thinwire.inference.trained_model import TrainedModel
from thinwire.models.contract import State


class DecoderLM(CTCDecoderLM):
    """A trained model that scores one word at a time for the decoder, in nats.

    Args:
        model: a trained model, from `thinwire.load`.
        words: the words of the decoder, in the order of its indices.
    """

    def __init__(self, model: TrainedModel, words: Sequence[str]) -> None:
        CTCDecoderLM.__init__(self)
        self._model = model
        self._ids = [model.tokenizer.encode(word) for word in words]
        self._states: dict[CTCDecoderLMState, tuple[State, float]] = {}

    def start(self, start_with_nothing: bool) -> CTCDecoderLMState:
        """The state at the beginning of a line; the states of the previous line are dropped."""
        state = CTCDecoderLMState()
        self._states = {state: (self._model.start(), 0.0)}
        return state

    def score(
        self, state: CTCDecoderLMState, usr_token_idx: int
    ) -> tuple[CTCDecoderLMState, float]:
        """The state after the word with this index, and the word's log-probability."""
        after = state.child(usr_token_idx)
        if after not in self._states:
            read, nats = self._states[state][0], 0.0
            for id in self._ids[usr_token_idx]:
                read, logprob = self._model.step(read, id)
                nats += logprob
            self._states[after] = (read, nats)
        return after, self._states[after][1]

    def finish(self, state: CTCDecoderLMState) -> tuple[CTCDecoderLMState, float]:
        """The same state, and the log-probability of the end of the line."""
        _, logprob = self._model.step(self._states[state][0], self._model.tokenizer.eos_id)
        return state, logprob
