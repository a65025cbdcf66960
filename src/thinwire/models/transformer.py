"""A Transformer decoder: pre-norm, RMSNorm, rotary positions, PyTorch's fused attention.

Sources: Vaswani et al. 2017 (arXiv 1706.03762); RMSNorm, Zhang & Sennrich 2019 (arXiv 1910.07467);
rotary positions, Su et al. 2021 (arXiv 2104.09864).

B streams, T tokens, W tokens of a window, L layers, D width, H heads, K width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinwire.models.contract import Body, State
from thinwire.models.dropout import DropoutMasks

ROTARY_BASE = 10_000.0


class Transformer(Body):
    """Causal self-attention blocks; sees the tokens of its window and carries nothing."""

    carries_state = False

    def __init__(self, input_width: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.widen = (
            nn.Linear(input_width, width, bias=False) if input_width != width else nn.Identity()
        )
        self.layers = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Normal with standard deviation 1/sqrt(fan in); outputs to the residual start at zero.

        The gains of the last norm start at 1/sqrt(D), so that hidden states have length 1. With
        gains of 1 their length would be sqrt(D), and a step that changes every number of an output
        row by the rate would change logits by D times the rate. At width 256, the first steps of
        Adagrad at 0.2 then raised the loss from 9.6 to over 12 nats.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("attend_out.weight", "feed_out.weight")):
                parameter.zero_()
            elif parameter.dim() == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        self.norm.weight.fill_(self.norm.weight.numel() ** -0.5)

    def forward(
        self, x_BTE: Tensor, state: State | None, dropout: DropoutMasks | None
    ) -> tuple[Tensor, State]:
        """See `Body`; the state is empty."""
        # Under autocast too, sums over the layers have the type of the embedding.
        x_BTD = self.widen(dropout.drop(x_BTE) if dropout else x_BTE).to(x_BTE.dtype)
        cos_TK, sin_TK = _rotation(x_BTD.shape[1], self.layers[0].head_width, x_BTD)  # type: ignore[arg-type]
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_TK, sin_TK, dropout)
        x_BTD = self.norm(x_BTD)
        return (dropout.drop(x_BTD) if dropout else x_BTD), ()

    def empty_cache(self, num_streams: int, length: int, like: Tensor) -> State:
        """Zero tensors for the keys and values of all layers, `[B, L, H, W, K]` each."""
        first = self.layers[0]
        assert isinstance(first, _Block)
        shape = num_streams, len(self.layers), first.heads, length, first.head_width
        return like.new_zeros(shape), like.new_zeros(shape)

    def forward_with_cache(
        self, x_BTE: Tensor, past: State, first_B1: Tensor
    ) -> tuple[Tensor, State]:
        """`forward` for the next tokens of a window, from the keys and values of earlier ones.

        Args:
            x_BTE: embedded words, as `embed` returns them.
            past: keys and values from `empty_cache` or an earlier call. They are not changed.
            first_B1: the position of the first of these words in its window, from 0. `past` is not
                read at this and later positions.

        Returns:
            Hidden states `[B, T, D]`, and the keys and values including those of these words.
        """
        T, W, K = x_BTE.shape[1], past[0].shape[3], past[0].shape[4]
        position_BT = first_B1 + torch.arange(T, device=x_BTE.device)
        cos_WK, sin_WK = _rotation(W, K, x_BTE)
        cos_B1TK, sin_B1TK = cos_WK[position_BT][:, None], sin_WK[position_BT][:, None]
        seen = int(position_BT.max()) + 1
        is_seen_B1TS = torch.arange(seen, device=x_BTE.device) <= position_BT[:, None, :, None]
        x_BTD = self.widen(x_BTE)
        keys, values = [], []
        for layer, key_BHWK, value_BHWK in zip(
            self.layers, past[0].unbind(1), past[1].unbind(1), strict=True
        ):
            assert isinstance(layer, _Block)
            q_BHTK, k_BHTK, v_BHTK = layer.project(x_BTD)
            k_BHTK = _rotate(k_BHTK, cos_B1TK, sin_B1TK)
            index_BHTK = position_BT[:, None, :, None].expand_as(k_BHTK)
            keys.append(key_BHWK.scatter(2, index_BHTK, k_BHTK))
            values.append(value_BHWK.scatter(2, index_BHTK, v_BHTK))
            mixed_BHTK = F.scaled_dot_product_attention(
                _rotate(q_BHTK, cos_B1TK, sin_B1TK),
                keys[-1][:, :, :seen],
                values[-1][:, :, :seen],
                attn_mask=is_seen_B1TS,
            )
            x_BTD = layer.add(x_BTD, mixed_BHTK, None)
        return self.norm(x_BTD), (torch.stack(keys, 1), torch.stack(values, 1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.attend_norm = nn.RMSNorm(width)
        self.attend_in = nn.Linear(width, 3 * width, bias=False)
        self.attend_out = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.RMSNorm(width)
        self.feed_in = nn.Linear(width, 4 * width, bias=False)
        self.feed_out = nn.Linear(4 * width, width, bias=False)

    def forward(
        self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, dropout: DropoutMasks | None
    ) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD)
        mixed_BHTK = F.scaled_dot_product_attention(
            _rotate(q_BHTK, cos_TK, sin_TK), _rotate(k_BHTK, cos_TK, sin_TK), v_BHTK, is_causal=True
        )
        return self.add(x_BTD, mixed_BHTK, dropout)

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, not rotated yet."""
        B, T, _ = x_BTD.shape
        qkv = self.attend_in(self.attend_norm(x_BTD))
        q_BHTK, k_BHTK, v_BHTK = qkv.view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q_BHTK, k_BHTK, v_BHTK

    def add(self, x_BTD: Tensor, mixed_BHTK: Tensor, dropout: DropoutMasks | None) -> Tensor:
        """Add the output of attention to the residual, and then that of the feed-forward layer."""
        attended_BTD = self.attend_out(mixed_BHTK.transpose(1, 2).flatten(2))
        x_BTD = x_BTD + (dropout.drop(attended_BTD) if dropout else attended_BTD)
        fed_BTD = self.feed_out(F.gelu(self.feed_in(self.feed_norm(x_BTD))))
        return x_BTD + (dropout.drop(fed_BTD) if dropout else fed_BTD)


def _rotation(T: int, K: int, like: Tensor) -> tuple[Tensor, Tensor]:
    frequency_K = ROTARY_BASE ** (-torch.arange(0, K, 2, device=like.device) / K)
    angle_TK = torch.arange(T, device=like.device)[:, None] * frequency_K.repeat(2)[None, :]
    return angle_TK.cos().to(like), angle_TK.sin().to(like)


def _rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat([-second, first], dim=-1) * sin_TK
