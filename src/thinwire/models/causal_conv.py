"""Causal convolutions with highway connections, then attention over earlier positions.

After Laird & Irvin 2017 (course report), as we implement it; highways: Srivastava, Greff,
Schmidhuber 2015 (arXiv 1505.00387). All positions of a batch are computed at once.

1. **Read.** A gated convolution over the last `first_kernel` embedded tokens. It is linear in each
   token, so the contribution of a token to later positions is computed once per distinct token and
   looked up (Devlin et al. 2014 do this for trained networks). Over bytes it costs almost nothing.
2. **Blocks.** Convolution l looks at `kernel` positions, `dilation**l` apart. A gate decides, for
   each unit, how much of its result replaces its input. If both kernels are equal to the dilation,
   l blocks see each of the last `kernel**(l + 1)` tokens once.
3. **Attention**, if enabled: every position looks at itself and the `window - 1` positions before
   it; the score falls linearly with the distance (Press et al. 2022, arXiv 2108.12409).

The state contains what later positions need of earlier ones: the contributions of the last tokens,
the inputs of each convolution, keys and values. So a boundary between two batches does not change
any hidden state, and generating a token costs one position. Gradients do not cross the boundary.

B streams, T tokens, R distinct tokens, E embedding width, D width, K taps of a convolution,
P past positions, S = P + T, H heads, A width of the attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinwire.models.contract import Body, State
from thinwire.models.dropout import DropoutMasks

# Highway gates start mostly closed, so that a deep stack starts near the identity.
GATE_BIAS = -1.0
# Embeddings start small (LanguageModel), so the weights that read them start larger.
READ_GAIN = 4.0


class CausalConv(Body):
    """A reading convolution, highway convolutions and windowed attention (`window` 0: none)."""

    carries_state = True

    def __init__(
        self,
        input_width: int,
        width: int,
        *,
        layers: int,
        first_kernel: int,
        kernel: int,
        dilation: int,
        window: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.width, self.first_kernel = width, first_kernel
        self.read = nn.Linear(input_width, first_kernel * 2 * width, bias=False)
        self.read_bias = nn.Parameter(torch.empty(2 * width))
        self.layers = nn.ModuleList(
            _Highway(width, kernel, dilation**layer) for layer in range(1, layers + 1)
        )
        self.attention = _Attention(width, window, heads) if window else None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Normal with standard deviation 1/sqrt(fan in); the output of attention starts at zero."""
        for name, parameter in self.named_parameters():
            if name == "attention.out.weight":
                parameter.zero_()
            elif name == "read.weight":
                fan_in = parameter.shape[1] * self.first_kernel
                parameter.normal_(0.0, READ_GAIN * fan_in**-0.5, generator=generator)
            elif parameter.dim() == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.zero_()
        for layer in self.layers:
            assert isinstance(layer, _Highway)
            layer.convolve.bias[self.width :] = GATE_BIAS

    def embed(self, rows_RE: Tensor, ids_BT: Tensor, more_BTE: Tensor | None = None) -> Tensor:
        """The contributions of tokens to their own and the `first_kernel - 1` next positions.

        `more_BTE` contributes only to its own position: it depends on more than the token, so it
        cannot be looked up.

        Returns:
            `[B, T + first_kernel - 1, 2D]`: sums by position, including positions after the last
            token.
        """
        K, (B, T) = self.first_kernel, ids_BT.shape
        if len(rows_RE) > ids_BT.numel():
            distinct, ids_BT = torch.unique(ids_BT, return_inverse=True)
            rows_RE = rows_RE[distinct]
        # Row r * K + i is the contribution of token r to the position i later; the last row is 0.
        # The bias is added to contributions with i = 0, of which every position has one.
        bias = F.pad(self.read_bias, (0, (K - 1) * 2 * self.width))
        # Under autocast too, contributions are added up in the type of the embedding.
        table = F.linear(rows_RE, self.read.weight, bias).to(rows_RE.dtype)
        table = table.view(len(rows_RE) * K, 2 * self.width)
        nothing = len(table)
        taps_BSK = ids_BT.new_full((B, T + K - 1, K), nothing)
        for i in range(K):
            taps_BSK[:, i : i + T, i] = ids_BT * K + i
        table = torch.cat([table, table.new_zeros(1, 2 * self.width)])
        sums = F.embedding_bag(taps_BSK.view(-1, K), table, mode="sum", padding_idx=nothing)
        sums_BS2 = sums.view(B, T + K - 1, 2 * self.width)
        if more_BTE is None:
            return sums_BS2
        more_BT2 = F.linear(more_BTE, self.read.weight[: 2 * self.width]).to(sums_BS2.dtype)
        return torch.cat([sums_BS2[:, :T] + more_BT2, sums_BS2[:, T:]], dim=1)

    def forward(
        self, x_BTE: Tensor, state: State | None, dropout: DropoutMasks | None
    ) -> tuple[Tensor, State]:
        """See `Body`; `x_BTE` is the result of `embed`."""
        past = list(state) if state is not None else self._initial_state(x_BTE)
        K, after = self.first_kernel, []
        reach = past.pop(0)
        sums_BS2 = torch.cat([x_BTE[:, : K - 1] + reach, x_BTE[:, K - 1 :]], dim=1)
        T = x_BTE.shape[1] - (K - 1)
        after.append(sums_BS2[:, T:])
        x_BTD = F.glu(sums_BS2[:, :T], dim=2)
        for layer in self.layers:
            if dropout:
                x_BTD = dropout.drop(x_BTD)
            x_BTD, kept_BPD = layer(x_BTD, past.pop(0))
            after.append(kept_BPD)
        if self.attention is not None:
            if dropout:
                x_BTD = dropout.drop(x_BTD)
            x_BTD, kept = self.attention(x_BTD, past)
            after += kept
        if dropout:
            x_BTD = dropout.drop(x_BTD)
        return x_BTD, tuple(after)

    def _initial_state(self, like: Tensor) -> list[Tensor]:
        """The state before the first token, which is zero."""
        D, B = self.width, len(like)
        shapes = [(self.first_kernel - 1, 2 * D)]
        for layer in self.layers:
            assert isinstance(layer, _Highway)
            shapes.append((layer.past, D))
        zeros = [like.new_zeros(B, *shape) for shape in shapes]
        if self.attention is not None:
            P = self.attention.window - 1
            A = self.attention.inner
            zeros += [like.new_zeros(B, P, A), like.new_zeros(B, P, A), like.new_zeros(B, 1)]
        return zeros


class _Highway(nn.Module):
    """A dilated causal convolution with a highway gate."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.past = (kernel - 1) * dilation
        self.convolve = nn.Linear(kernel * width, 2 * width)

    def forward(self, x_BTD: Tensor, past_BPD: Tensor) -> tuple[Tensor, Tensor]:
        T = x_BTD.shape[1]
        x_BSD = torch.cat([past_BPD, x_BTD], dim=1)
        # Taps side by side, then one matrix product: a plain linear layer on every device.
        taps = [x_BSD[:, i * self.dilation :][:, :T] for i in range(self.kernel)]
        convolved = self.convolve(torch.cat(taps, dim=2)).to(x_BTD.dtype)
        candidate_BTD, gate_BTD = convolved.chunk(2, dim=2)
        mixed_BTD = torch.lerp(x_BTD, candidate_BTD.tanh(), gate_BTD.sigmoid())
        return mixed_BTD, x_BSD[:, T:]


class _Attention(nn.Module):
    """Attention of every position over a window that ends with it, added to the input."""

    slope_H: Tensor

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        # Half as wide as the model: at full width, attention made a step take 1.7 times as long.
        self.inner = width // 2
        self.query_key_value = nn.Linear(width, 3 * self.inner, bias=False)
        self.out = nn.Linear(self.inner, width, bias=False)
        # Press et al. 2022: a geometric series that ends at 1/256.
        slope_H = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
        self.register_buffer("slope_H", slope_H, persistent=False)

    def forward(self, x_BTD: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Returns the output, and the keys, the values and the number of past tokens (at most
        `window - 1`)."""
        past_key_BPA, past_value_BPA, read_B1 = past
        T, P = x_BTD.shape[1], self.window - 1
        query_BTA, key_BTA, value_BTA = self.query_key_value(x_BTD).to(x_BTD.dtype).chunk(3, dim=2)
        key_BSA = torch.cat([past_key_BPA, key_BTA], dim=1)
        value_BSA = torch.cat([past_value_BPA, value_BTA], dim=1)
        mixed = []
        # One window at a time, so that the cost per token does not grow with the batch's length.
        for first in range(0, T, self.window):
            query = query_BTA[:, first : first + self.window]
            seen = slice(first, first + query.shape[1] + P)
            bias = self._bias(query.shape[1], first + read_B1)
            mixed.append(self._mix(query, key_BSA[:, seen], value_BSA[:, seen], bias))
        mixed_BTA = torch.cat(mixed, dim=1)
        kept = [key_BSA[:, T:], value_BSA[:, T:], (read_B1 + T).clamp(max=P)]
        return x_BTD + self.out(mixed_BTA), kept

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, bias_BHTS: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHTS)
        return mixed.transpose(1, 2).flatten(2)

    def _bias(self, T: int, read_B1: Tensor) -> Tensor:
        """The bias of the scores, `[B or 1, H, T, S]`: -inf at positions that are not seen."""
        P, device = self.window - 1, read_B1.device
        distance_TS = (
            P + torch.arange(T, device=device)[:, None] - torch.arange(P + T, device=device)
        )
        is_seen_TS = (distance_TS >= 0) & (distance_TS <= P)
        bias_HTS = (-self.slope_H[:, None, None] * distance_TS).masked_fill(~is_seen_TS, -torch.inf)
        if bool((read_B1 >= P).all()):
            return bias_HTS[None]
        is_before_BS = torch.arange(P + T, device=device) < P - read_B1
        return bias_HTS.masked_fill(is_before_BS[:, None, None], -torch.inf)
