"""KenLM's Python interface, answered by a trained model.

    import thinwire.integrations.kenlm as kenlm
    model = kenlm.Model("run")
    model.score("a sentence", bos=True, eos=True)     # log10

Scores are logarithms to base 10, as in KenLM. The model's own tokenizer splits the text; the
probability of a word that becomes several tokens is the product of theirs. The KenLM package is not
needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import NamedTuple

import torch

from thinwire.errors import UserError
from thinwire.inference.load import load
from thinwire.inference.trained_model import TrainedModel
from thinwire.models.contract import State as DecoderState

LOG_10 = log(10.0)
# In KenLM, the order limits the context of a word. This is longer than any sentence.
ORDER = 1 << 20


class FullScoreReturn(NamedTuple):
    """The score of one word, as `BaseFullScore` gives it."""

    log_prob: float
    """log10 of its probability."""

    ngram_length: int
    """Number of tokens that the probability depends on, the scored one included."""

    oov: bool
    """Whether it is outside the vocabulary."""


@dataclass
class State:
    """The tokens read so far; empty until `Model.BeginSentenceWrite` or `Model.BaseScore` fill it.

    Two states are equal if the same tokens have been read.
    """

    read: tuple[int, ...] = ()
    decoder: DecoderState | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.read == other.read

    def __hash__(self) -> int:
        return hash(self.read)


class Model:
    """A trained model with the interface of `kenlm.Model`.

    Args:
        model: a run folder, or a trained model from `thinwire.load`.
    """

    def __init__(self, model: str | Path | TrainedModel) -> None:
        self._model = model if isinstance(model, TrainedModel) else load(model)
        self._tokenizer = self._model.tokenizer
        self._eos = self._tokenizer.token(self._tokenizer.eos_id)

    @property
    def order(self) -> int:
        """Larger than any sentence, because the model's context is not limited to n words."""
        return ORDER

    def __contains__(self, word: str) -> bool:
        return word == self._eos or self._tokenizer.unk_id not in self._ids(word)

    def score(self, sentence: str, bos: bool = True, eos: bool = True) -> float:
        """log10 of the probability of a sentence.

        Args:
            sentence: text without marks for its start and end.
            bos: whether it is at the beginning of a line. If not, the text before it is unknown,
                and the probability of its first token is its frequency in the training text.
            eos: whether the end of the line follows and is scored.
        """
        return sum(logprob for logprob, _, _ in self.full_scores(sentence, bos, eos))

    def full_scores(
        self, sentence: str, bos: bool = True, eos: bool = True
    ) -> Iterator[tuple[float, int, bool]]:
        """For each token: log10 of its probability, tokens it depends on, whether it is unknown."""
        ids = [*self._ids(sentence), *([self._tokenizer.eos_id] if eos else [])]
        nats = self._nats_in_line(ids) if bos else self._nats_in_nothing(ids)
        for position, (id, found) in enumerate(zip(ids, nats, strict=True)):
            yield found / LOG_10, position + 1 + bos, id == self._tokenizer.unk_id

    def perplexity(self, sentence: str) -> float:
        """10 to the mean negative score of a sentence's tokens, its end included."""
        scores = [logprob for logprob, _, _ in self.full_scores(sentence)]
        return float(10.0 ** (-sum(scores) / len(scores)))

    def BeginSentenceWrite(self, state: State) -> None:
        """Set a state to the beginning of a line."""
        state.read, state.decoder = (self._tokenizer.eos_id,), self._model.start()

    def BaseScore(self, in_state: State, word: str, out_state: State) -> float:
        """log10 of the probability of a word after `in_state`; sets `out_state`."""
        return self.BaseFullScore(in_state, word, out_state).log_prob

    def BaseFullScore(self, in_state: State, word: str, out_state: State) -> FullScoreReturn:
        """The same as `BaseScore`, with the further values that KenLM returns.

        Raises:
            UserError: the state has not been begun.
        """
        if in_state.decoder is None:
            raise UserError("the state is empty: begin it with BeginSentenceWrite")
        ids = [self._tokenizer.eos_id] if word == self._eos else self._ids(word)
        after, nats = in_state.decoder, 0.0
        for id in ids:
            after, logprob = self._model.step(after, id)
            nats += logprob
        length = len(in_state.read) + len(ids)
        out_state.read, out_state.decoder = (*in_state.read, *ids), after
        return FullScoreReturn(nats / LOG_10, length, self._tokenizer.unk_id in ids)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def _nats_in_line(self, ids: list[int]) -> Iterator[float]:
        state = self._model.start()
        for id in ids:
            state, logprob = self._model.step(state, id)
            yield logprob

    def _nats_in_nothing(self, ids: list[int]) -> Iterator[float]:
        if not ids:
            return
        counts_V = self._model.run.counts_V().clamp(min=1).double()
        yield float((counts_V[ids[0]] / counts_V.sum()).log())
        network = self._model.model
        device, window = network.embedding.weight.device, self._model.run.config.data.length
        state: DecoderState | None = None
        for position in range(1, len(ids)):
            carries = network.body.carries_state
            first = position - 1 if carries else max(0, position - window)
            seen = ids[first:position]
            hidden_1TD, after = network.hidden(torch.tensor([seen], device=device), state)
            state = after if carries else None
            target_1 = torch.tensor([ids[position]], device=device)
            yield float(network.output.logprob(hidden_1TD[:, -1], target_1))


LanguageModel = Model
