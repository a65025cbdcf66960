"""Decoding with a body that has no recurrent state but sees a window of tokens.

A state is `(hidden_BD, window_BW, number_B1, *past)`: the hidden state, the tokens of the window,
padded at the end, and the number of these tokens. If the body can keep the keys and values of what
it has read, `past` has them, and one more token costs one position. Any other body reads its whole
window again for each token.

When a window is full, it moves on by half its length, as in scoring. The tokens that stay are then
read again, because they no longer see the tokens that have left. So a token costs two positions on
average.

B batch, b some of it, T tokens, W tokens of a window, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.language_model import LanguageModel
from thinwire.models.contract import State

# The largest number of positions that go through the body at a time.
CHUNK_POSITIONS = 4096


@dataclass(frozen=True)
class Windows:
    """Reads with a body that carries no state.

    Attributes:
        model: a trained model.
        length: number of tokens that the body sees at a time.
        pad_id: the token that pads a window.
    """

    model: LanguageModel
    length: int
    pad_id: int

    def read(self, prompts: Sequence[Sequence[int]]) -> State:
        """The state after each of these prompts, none empty."""
        return self._read(*self._filled(prompts))

    def hidden(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The hidden states alone, `[B, D]`, in memory that does not grow with the windows."""
        window_BW, number_B1 = self._filled(prompts)
        parts = self._chunks(window_BW, number_B1)
        return torch.cat([self._last(*self._parallel(*part)) for part in parts])

    def advance(self, state: State, ids_B1: Tensor) -> State:
        """The state after one more token per member."""
        _, window_BW, number_B1, *past = state
        is_full_B1 = number_B1 == self.length
        window_BW = torch.where(is_full_B1, window_BW.roll(-self._stride, dims=1), window_BW)
        number_B1 = number_B1 - self._stride * is_full_B1
        window_BW = window_BW.scatter(1, number_B1, ids_B1)
        moved_b = is_full_B1[:, 0].nonzero()[:, 0]
        if not past or len(moved_b) == len(window_BW):
            return self._read(window_BW, number_B1 + 1)
        hidden_B1D, after = self.model.hidden_in_window(ids_B1, tuple(past), number_B1)
        found = hidden_B1D[:, 0], window_BW, number_B1 + 1, *after
        if not len(moved_b):
            return found
        again = self._read(window_BW[moved_b], number_B1[moved_b] + 1)
        return tuple(
            part.index_copy(0, moved_b, new) for part, new in zip(found, again, strict=True)
        )

    @property
    def _stride(self) -> int:
        return max(1, self.length // 2)

    def _filled(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The tokens of each prompt's last window, padded at the end, and how many there are."""
        W, stride = self.length, self._stride
        # Skip whole strides, until the window reaches the prompt's last token.
        seen = [ids[max(0, -(-(len(ids) - W) // stride)) * stride :] for ids in prompts]
        rows = [[*ids, *[self.pad_id] * (W - len(ids))] for ids in seen]
        device = self.model.embedding.weight.device
        numbers = torch.tensor([[len(ids)] for ids in seen], device=device)
        return torch.tensor(rows, device=device), numbers

    def _read(self, window_BW: Tensor, number_B1: Tensor) -> State:
        found = []
        for window_bW, number_b1 in self._chunks(window_BW, number_B1):
            inputs_bT = window_bW[:, : int(number_b1.max())]
            past = self.model.empty_cache(len(inputs_bT), self.length)
            if past is None:
                hidden_bTD, after = self.model.hidden(inputs_bT, None)
            else:
                start_b1 = torch.zeros_like(number_b1)
                hidden_bTD, after = self.model.hidden_in_window(inputs_bT, past, start_b1)
            found.append((self._last(hidden_bTD, number_b1), window_bW, number_b1, *after))
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _parallel(self, window_bW: Tensor, number_b1: Tensor) -> tuple[Tensor, Tensor]:
        hidden_bTD, _ = self.model.hidden(window_bW[:, : int(number_b1.max())], None)
        return hidden_bTD, number_b1

    def _last(self, hidden_bTD: Tensor, number_b1: Tensor) -> Tensor:
        rows_b = torch.arange(len(hidden_bTD), device=hidden_bTD.device)
        return hidden_bTD[rows_b, number_b1[:, 0] - 1]

    def _chunks(self, window_BW: Tensor, number_B1: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split the prompts into groups that fit `CHUNK_POSITIONS`."""
        rows = max(1, CHUNK_POSITIONS // int(number_B1.max()))
        return list(zip(window_BW.split(rows), number_B1.split(rows), strict=True))
