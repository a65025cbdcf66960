"""A model read word by word, its state in the caller's hands.

A decoder state is a tuple of tensors whose first dimension is the batch, and is never changed in
place: it can be kept, selected from and put side by side as beams come and go (`select`, `stack`).

- The first tensor is the hidden state, from which the next word's distribution follows.
- The others are what the body needs to go on: its own state or, for a body without one, its window
  (`windows`).

The sum of what `step` returns over a line is the line's score, for every kind of model.

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
    """The state of some members of a batch, in this order; a member may be taken several times."""
    rows_B = torch.as_tensor(rows_B, dtype=torch.int64, device=state[0].device)
    return tuple(part.index_select(0, rows_B) for part in state)


def stack(states: Sequence[State]) -> State:
    """Several states as one batch."""
    return tuple(torch.cat(parts) for parts in zip(*states, strict=True))


def read_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt, which may be empty or have several lines.

    Raises:
        UserError: it holds what no text holds.
    """
    *lines, last = as_read(prompt, "the prompt").split("\n")
    before = [id for line in lines for id in [*tokenizer.encode(line), tokenizer.eos_id]]
    return [*before, *tokenizer.encode(last)]


def token_id(tokenizer: Tokenizer, word: str | int) -> int:
    """The id of a word that is a single token; the end-of-line token is one, as it is written.

    Raises:
        UserError: it is not one token, or an id that is not in the vocabulary.
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
    """Reads token ids and says how probable the next one is.

    Attributes:
        model: a trained model.
        eos_id: the end-of-line token, which every reading starts with.
        data: how the model was trained: afresh at each line or not, and how many tokens a body
            without a state sees at a time.
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
        """The hidden state after each of these prompts, `[B, D]`: less memory than a state."""
        read = self._begun(prompts)
        carries_state = self.model.body.carries_state
        return self._read_carrying(read)[0] if carries_state else self._windows.hidden(read)

    @torch.no_grad()
    def distribution(self, state: State) -> Tensor:
        """ln p of every word as the next one, exact, `[B, V]`."""
        return self.model.output.distribution(state[0])

    @torch.no_grad()
    def step(self, state: State, ids_B: Tensor) -> tuple[State, Tensor]:
        """The state after one more token of each, and ln p of that token, exact, `[B]`."""
        ids_B = ids_B.to(state[0].device)
        logprob_B = self.model.output.logprob(state[0], ids_B)
        return self.advance(state, ids_B), logprob_B

    @torch.no_grad()
    def advance(self, state: State, ids_B: Tensor) -> State:
        """The state after one more token of each, without the cost of its probability."""
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
        """What is read of each prompt: an end-of-line, then all of it or its last line."""
        if self.data.context == "line":
            prompts = [self._last_line(prompt) for prompt in prompts]
        return [[self.eos_id, *prompt] for prompt in prompts]

    def _restarted(self, state: State, is_fresh_B: Tensor) -> State:
        if self.model.body.carries_state:
            return reset_streams(state, is_fresh_B)
        hidden_BD, window_BW, number_B1, *past = state
        return hidden_BD, window_BW, number_B1.masked_fill(is_fresh_B[:, None], 0), *past

    def _last_line(self, prompt: Sequence[int]) -> list[int]:
        """What comes after the last end-of-line."""
        ends = [place for place, id in enumerate(prompt) if id == self.eos_id]
        return list(prompt[ends[-1] + 1 :] if ends else prompt)

    def _read_carrying(self, prompts: Sequence[Sequence[int]]) -> State:
        """Side by side without padding: whichever prompt has ended leaves."""
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
