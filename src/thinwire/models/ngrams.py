"""Hashed n-grams: a table whose rows are selected by the last few tokens.

For each position and each order from 2 to n:

1. **Hash.** The order and the last `order` token ids are mixed into 64 bits by multiplications and
   shifts of int64, which overflow in the same way on every machine and device.
2. **Row and sign.** The lower bits select a row, and the highest bit its sign. There are many more
   n-grams than rows, so n-grams share rows. Because of the signs, their contributions to a shared
   row cancel out on average (Weinberger et al. 2009, arXiv 0902.2206).
3. **Add.** The signed rows of all orders, scaled down, are added to the embedded word.

An order that would need tokens before the first one adds nothing. The table starts at zero, so an
untrained table does not change the model.

B streams, T tokens, P tokens before them, S = P + T, K orders, G gathered rows, E embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NO_TOKEN = 0
"""Represents positions before the first token. A token is represented by its id + 1."""

SCALE = 0.2
# Multipliers, as int64: 2^64 divided by the golden ratio, and those of MurmurHash3's finaliser.
_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
_FINAL = 0xFF51AFD7ED558CCD - (1 << 64), 0xC4CEB9FE1A85EC53 - (1 << 64)
_MOST = (1 << 63) - 1


class Ngrams(nn.Module):
    """The table of `num_rows` rows, and the lookup of n-grams of the orders 2 to `largest`."""

    def __init__(self, num_rows: int, width: int, largest: int) -> None:
        super().__init__()
        self.largest = largest
        self.weight = nn.Parameter(torch.zeros(num_rows, width))

    def rows(self, tokens_BS: Tensor, T: int) -> tuple[Tensor, Tensor]:
        """Look up the n-grams of the last T positions.

        Args:
            tokens_BS: token ids + 1, int64; `NO_TOKEN` for positions before the first token.
            T: number of positions to look up; the positions before them are context.

        Returns:
            Row numbers, and factors: the sign times the scale, or 0 if the n-gram would begin
            before the first token. Both are `[B, T, K]`.
        """
        missing = T + self.largest - 1 - tokens_BS.shape[1]
        if missing > 0:
            tokens_BS = F.pad(tokens_BS, (missing, 0), value=NO_TOKEN)
        S = tokens_BS.shape[1]
        hash_BT = tokens_BS[:, S - T :]
        hashes, is_whole = [], []
        for order in range(2, self.largest + 1):
            token_BT = tokens_BS[:, S - T - order + 1 : S - order + 1]
            hash_BT = hash_BT * _MULTIPLIER + token_BT
            hashes.append(_mixed(hash_BT + order))
            is_whole.append(token_BT != NO_TOKEN)
        hash_BTK = torch.stack(hashes, dim=2)
        sign_BTK = torch.where(hash_BTK < 0, -SCALE, SCALE)
        factor_BTK = sign_BTK * torch.stack(is_whole, dim=2)
        return (hash_BTK & _MOST) % len(self.weight), factor_BTK


def sum_rows(rows_GE: Tensor, at_BTK: Tensor, factor_BTK: Tensor) -> Tensor:
    """The sum over the orders, `[B, T, E]`, of the rows `at_BTK` times their factors."""
    B, T, K = at_BTK.shape
    factor_NK = factor_BTK.view(-1, K).to(rows_GE.dtype)
    sums_NE = F.embedding_bag(at_BTK.view(-1, K), rows_GE, mode="sum", per_sample_weights=factor_NK)
    return sums_NE.view(B, T, -1)


def _mixed(hash: Tensor) -> Tensor:
    """Every bit of the result depends on every bit of the hash."""
    for multiplier in _FINAL:
        hash = (hash ^ _upper_bits(hash)) * multiplier
    return hash ^ _upper_bits(hash)


def _upper_bits(hash: Tensor) -> Tensor:
    """A logical shift to the right by 33; the shift of int64 alone would copy the sign."""
    return (hash >> 33) & ((1 << 31) - 1)
