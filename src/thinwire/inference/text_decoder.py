"""A decoder whose prompts are text and whose words are strings or token ids.

`Decoder` (`decoding`) works on token ids. This one encodes prompts, looks words up, refuses what is
not in the vocabulary, and finds the most probable next words.

B batch, D width, K words, N prompts, n prompts at a time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from thinwire.data.config import DataConfig
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.candidates import (
    Candidate,
    logprobs_of,
    most_probable,
    num_rows_at_a_time,
)
from thinwire.inference.decoding import Decoder, Words, read_prompt, token_id
from thinwire.language_model import LanguageModel
from thinwire.models.contract import State


class TextDecoder:
    """Reads prompts and words, and gives probabilities of next words.

    Args:
        model: a trained model.
        tokenizer: its tokenizer.
        data: `context` and `length` of the training; see `Decoder`.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, data: DataConfig) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._decoder = Decoder(model, tokenizer.eos_id, data)

    def candidates(self, prompts: list[str], k: int, *, words_only: bool) -> list[list[Candidate]]:
        """The k most probable next words after each prompt, the most probable first.

        Raises:
            UserError: k is below 1, or a prompt holds what no text holds.
        """
        if k < 1:
            raise UserError(f"the {k} most probable words were asked for, but it must be 1 or more")
        ends = (self._tokenizer.eos_id, self._tokenizer.unk_id)
        without = [id for id in ends if id is not None] if words_only else []
        found = []
        for hidden_nD in self._hidden(prompts):
            logprob_nK, ids_nK = most_probable(self._model, hidden_nD, k, without)
            found += [
                [Candidate(self._tokenizer.token(id), p, id) for p, id in zip(*row, strict=True)]
                for row in zip(logprob_nK.tolist(), ids_nK.tolist(), strict=True)
            ]
        return found

    def logprobs(self, prompts: list[str], words: Sequence[str | int]) -> Tensor:
        """ln p of each word after each prompt, exact, `[N, K]`.

        Raises:
            UserError: a word is not one token, or an id is not in the vocabulary.
        """
        ids_K = self._ids(words)
        rows = [logprobs_of(self._model, hidden, ids_K).cpu() for hidden in self._hidden(prompts)]
        return torch.cat(rows) if rows else torch.zeros(0, len(ids_K))

    def start(self, prompts: list[str]) -> State:
        """The state after each prompt."""
        return self._decoder.read(self._encode(prompts))

    def step(self, state: State, word: str | int | Words) -> tuple[State, Tensor]:
        """The state after one more word for each member of the batch, and ln p of it, `[B]`.

        Raises:
            UserError: a word is not one token, an id is not in the vocabulary, or there are more
                or fewer words than the batch has members.
        """
        return self._decoder.step(state, self._ids_for(state, word))

    def advance(self, state: State, word: str | int | Words) -> State:
        """The state after one more word, without the cost of its probability."""
        return self._decoder.advance(state, self._ids_for(state, word))

    def distribution(self, state: State) -> Tensor:
        """ln p of every word as the next one, exact, `[B, V]`."""
        return self._decoder.distribution(state)

    def _hidden(self, prompts: list[str]) -> Iterator[Tensor]:
        """The hidden states `[n, D]` after the prompts, for a few prompts at a time."""
        size = num_rows_at_a_time(self._model.vocab_size)
        for first in range(0, len(prompts), size):
            yield self._decoder.hidden(self._encode(prompts[first : first + size]))

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        return [read_prompt(self._tokenizer, prompt) for prompt in prompts]

    def _ids_for(self, state: State, word: str | int | Words) -> Tensor:
        words: Sequence[str | int] | Tensor = [word] if isinstance(word, str | int) else word
        ids_B = self._ids(words.tolist() if isinstance(words, Tensor) else words)
        if len(ids_B) != len(state[0]):
            raise UserError(f"{len(ids_B)} words were given for a state of {len(state[0])}")
        return ids_B

    def _ids(self, words: Sequence[str | int]) -> Tensor:
        ids = [token_id(self._tokenizer, word) for word in words]
        return torch.tensor(ids, dtype=torch.int64, device=self._model.embedding.weight.device)
