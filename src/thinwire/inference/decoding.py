"""Decoding step by step: the caller keeps the state, for instance for beam search.

A decoder state is a tuple of tensors whose first dimension is the batch. It is never changed in
place, so it can be kept. For beam search, `select` takes some members of a batch, and `stack` makes
one batch of several states.

- The first tensor is the hidden state, which gives the distribution of the next word.
- The other tensors are what the body needs to continue: its own state or, for a body without one,
  its window of tokens (`windows`).

For every kind of model, the log-probabilities that `step` returns over a line add up to the line's
score.

B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.data.config import DataConfig
from thinwire.data.text import as_read
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.windows import CHUNK_POSITIONS, Windows
from thinwire.language_model import LanguageModel
from thinwire.models.contract import State, reset_streams

Words = list[str] | list[int] | Tensor
"""Words or token ids, one for each member of a batch."""


def select(state: State, rows_B: Tensor | Sequence[int]) -> State:
    """The state of these members of a batch, in this order; a member may occur repeatedly."""
    rows_B = torch.as_tensor(rows_B, dtype=torch.int64, device=state[0].device)
    return tuple(part.index_select(0, rows_B) for part in state)


def stack(states: Sequence[State]) -> State:
    """Several states as one batch."""
    return tuple(torch.cat(parts) for parts in zip(*states, strict=True))


def read_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt, which may be empty or have several lines.

    Raises:
        UserError: it contains a NUL character, or a character that UTF-8 cannot encode.
    """
    *lines, last = as_read(prompt, "the prompt").split("\n")
    before = [id for line in lines for id in [*tokenizer.encode(line), tokenizer.eos_id]]
    return [*before, *tokenizer.encode(last)]


def token_id(tokenizer: Tokenizer, word: str | int) -> int:
    """The id of a word that is a single token, or of the end-of-line token by its name.

    Raises:
        UserError: the word is not one token, or the id is not in the vocabulary.
    """
    if isinstance(word, int):
        if not 0 <= word < tokenizer.vocab_size:
            raise UserError(
                f"there is no token {word}: the vocabulary has {tokenizer.vocab_size:,} tokens"
            )
        return word
    if word == tokenizer.token(tokenizer.eos_id):
        return tokenizer.eos_id
    ids = tokenizer.encode(as_read(word, "the word"))
    if len(ids) != 1:
        raise UserError(f"{word!r} is {len(ids)} tokens, not one: give token ids")
    return ids[0]


@dataclass(frozen=True)
class Decoder:
    """Reads token ids, and gives the distribution of the next one.

    Attributes:
        model: a trained model.
        eos_id: the end-of-line token, which is read before every prompt.
        data: `context` says whether the state is reset at each line, `length` how many tokens a
            body without a state sees at a time.
    """

    model: LanguageModel
    eos_id: int
    data: DataConfig

    @torch.no_grad()
    def read(self, prompts: Sequence[Sequence[int]]) -> State:
        """The state after each of these prompts, which may be empty."""
        read = self._begun(prompts)
        carries_state = self.model.body.carries_state
        return self._read_carrying(read) if carries_state else self._windows.read(read)

    @torch.no_grad()
    def hidden(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The hidden state after each of these prompts, `[B, D]`; takes less memory than `read`."""
        read = self._begun(prompts)
        carries_state = self.model.body.carries_state
        return self._read_carrying(read)[0] if carries_state else self._windows.hidden(read)

    @torch.no_grad()
    def distribution(self, state: State) -> Tensor:
        """ln p of every word as the next one, exact, `[B, V]`."""
        return self.model.output.distribution(state[0])

    @torch.no_grad()
    def step(self, state: State, ids_B: Tensor) -> tuple[State, Tensor]:
        """The state after one more token per member, and ln p of that token, exact, `[B]`."""
        ids_B = ids_B.to(state[0].device)
        logprob_B = self.model.output.logprob(state[0], ids_B)
        return self.advance(state, ids_B), logprob_B

    @torch.no_grad()
    def advance(self, state: State, ids_B: Tensor) -> State:
        """The state after one more token per member, without computing its probability."""
        ids_B1 = ids_B.to(state[0].device)[:, None]
        if self.data.context == "line":
            state = self._restarted(state, ids_B1[:, 0] == self.eos_id)
        if self.model.body.carries_state:
            hidden_B1D, after = self.model.hidden(ids_B1, state[1:])
            return hidden_B1D[:, 0], *after
        return self._windows.advance(state, ids_B1)

    @property
    def _windows(self) -> Windows:
        return Windows(self.model, self.data.length, self.eos_id)

    def _begun(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The ids to read for each prompt: an end-of-line, then the prompt or its last line."""
        if self.data.context == "line":
            prompts = [self._last_line(prompt) for prompt in prompts]
        return [[self.eos_id, *prompt] for prompt in prompts]

    def _restarted(self, state: State, is_fresh_B: Tensor) -> State:
        if self.model.body.carries_state:
            return reset_streams(state, is_fresh_B)
        hidden_BD, window_BW, number_B1, *past = state
        return hidden_BD, window_BW, number_B1.masked_fill(is_fresh_B[:, None], 0), *past

    def _last_line(self, prompt: Sequence[int]) -> list[int]:
        """The ids after the last end-of-line."""
        ends = [position for position, id in enumerate(prompt) if id == self.eos_id]
        return list(prompt[ends[-1] + 1 :] if ends else prompt)

    def _read_carrying(self, prompts: Sequence[Sequence[int]]) -> State:
        """Read all prompts as one batch without padding: a prompt that has ended leaves it."""
        device = self.model.embedding.weight.device
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        found: list[State] = []
        state: State | None = None
        num_read = num_left = 0
        for length in sorted({len(prompt) for prompt in prompts}):
            going = order[num_left:]
            ids_BT = torch.tensor([prompts[row][num_read:length] for row in going], device=device)
            for ids_Bt in ids_BT.split(max(1, CHUNK_POSITIONS // len(going)), dim=1):
                hidden_BtD, state = self.model.hidden(ids_Bt, state)
            assert state is not None
            num_ended = sum(len(prompts[row]) == length for row in going)
            found.append(tuple(part[:num_ended] for part in (hidden_BtD[:, -1], *state)))
            state = tuple(part[num_ended:] for part in state)
            num_read, num_left = length, num_left + num_ended
        return select(stack(found), torch.tensor(order).argsort())
