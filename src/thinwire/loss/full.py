"""The exact softmax over the whole vocabulary, computed in pieces that fit in memory.

V vocabulary, N positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import e, log2
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thinwire.loss.contract import Criterion, LossPlan
from thinwire.loss.precision import full_precision
from thinwire.matmul import matmul_nt

# Largest number of logits that exist at a time in training (256 MB).
CHUNK_LOGITS = 2**26
# Size of a tile of logits in evaluation, which stays in a processor's cache (4 MB).
TILE_POSITIONS = 1024
TILE_WORDS = 1024
# A sum of exponentials between these limits is exact: no term overflowed, and terms too small for
# fp32 (2^-126) would not have changed the sum.
EXACT_SUMS = (2.0**-80, 2.0**127)


class FullSoftmax(Criterion):
    """Cross-entropy with the exact softmax. Every step touches every output row.

    Args:
        in_bf16: round the factors of the matrix products to bf16.
    """

    def __init__(self, *, in_bf16: bool = False) -> None:
        self.in_bf16 = in_bf16

    def plan(self, targets_N: Tensor, step: int) -> LossPlan:
        """Every row, whatever the targets."""
        return LossPlan(ids_R=None, target_rows_N=targets_N)

    def loss(self, hidden_ND: Tensor, plan: LossPlan, weight_RD: Tensor, bias_R: Tensor) -> Tensor:
        """The summed exact cross-entropy in nats."""
        with full_precision(hidden_ND, weight_RD, bias_R) as (h_ND, w_RD, b_R):
            value: Tensor = _FullSoftmax.apply(  # type: ignore[no-untyped-call]
                h_ND, w_RD, b_R, plan.target_rows_N, self.in_bf16
            )
        return value


class _FullSoftmax(torch.autograd.Function):
    """Computes the gradients together with the value, chunk by chunk of positions."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        targets_N: Tensor,
        in_bf16: bool,
    ) -> Tensor:
        d_hidden, d_weight_VD, d_bias_V = [], None, None
        total = hidden_ND.new_zeros(())
        chunk = max(1, CHUNK_LOGITS // len(weight_VD))
        for h_nD, y_n in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
            logits_nV = matmul_nt(h_nD, weight_VD, bias_V, in_bf16=in_bf16)
            n = torch.arange(len(y_n), device=y_n.device)
            target_logit_n, largest_n = logits_nV[n, y_n], logits_nV.amax(1)
            p_nV = torch.softmax(logits_nV, dim=1, out=logits_nV)
            log_z_n = largest_n - p_nV.amax(1).log()
            total += (log_z_n - target_logit_n).sum()

            p_nV[n, y_n] -= 1.0
            d_hidden.append(matmul_nt(p_nV, weight_VD.t(), in_bf16=in_bf16))
            d_weight_nVD = matmul_nt(p_nV.t(), h_nD.t(), in_bf16=in_bf16)
            d_bias_nV = p_nV.sum(0)
            d_weight_VD = d_weight_nVD if d_weight_VD is None else d_weight_VD.add_(d_weight_nVD)
            d_bias_V = d_bias_nV if d_bias_V is None else d_bias_V.add_(d_bias_nV)
        ctx.save_for_backward(torch.cat(d_hidden), d_weight_VD, d_bias_V)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_weight_VD, d_bias_V = ctx.saved_tensors
        return d_hidden_ND * d_total, d_weight_VD.mul_(d_total), d_bias_V * d_total, None, None


@torch.no_grad()
def exact_logprob(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor
) -> Tensor:
    """ln p(target) under the full softmax, `[N]`; only one tile of logits exists at a time."""
    logprob = []
    with full_precision(hidden_ND, weight_VD, bias_V) as (h_ND, w_VD, b_V):
        for h_nD, y_n in zip(
            h_ND.split(TILE_POSITIONS), targets_N.split(TILE_POSITIONS), strict=True
        ):
            target_logit_n = (h_nD * w_VD.index_select(0, y_n)).sum(1) + b_V[y_n]
            logprob.append(target_logit_n - _log_z(h_nD, w_VD, b_V))
        return torch.cat(logprob) if logprob else h_ND.new_zeros(0)


def _log_z(h_nD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
    """ln of the sum over all words of exp(logit), `[n]`.

    It makes two passes over the logits: powers of two, which PyTorch computes four times as fast as
    exp, and their sum. The usual shift by the largest logit is needed only if the largest logit of
    a row lies outside -55 ... 88; a slower method then computes all rows.
    """
    z_n, scaled_h_nD = h_nD.new_zeros(len(h_nD)), h_nD * log2(e)
    for w_vD, b_v in _tiles(weight_VD, bias_V):
        z_n += matmul_nt(scaled_h_nD, w_vD, b_v * log2(e)).exp2_().sum(1)
    least, most = EXACT_SUMS
    if bool(((z_n > least) & (z_n < most)).all()):
        return z_n.log()
    log_z_n = h_nD.new_full((len(h_nD),), -torch.inf)
    for w_vD, b_v in _tiles(weight_VD, bias_V):
        log_z_n = torch.logaddexp(log_z_n, torch.logsumexp(matmul_nt(h_nD, w_vD, b_v), dim=1))
    return log_z_n


def _tiles(weight_VD: Tensor, bias_V: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(weight_VD.split(TILE_WORDS), bias_V.split(TILE_WORDS), strict=True)
