"""Sampled softmax: an unbiased estimate of the partition function from a sample of the words.

For a position with target y, the softmax's denominator is estimated as

    Z = exp(s_y) + sum over drawn words i != y of exp(s_i) / q_i

with q_i the probability that i was drawn (Horvitz-Thompson): ln q_i is subtracted from the logits
of drawn words. The target's term is exact, and its drawn copy (an accidental hit) is masked. A word
that was not drawn but is the target of another position has no q_i, and does not count; counting it
as if it were drawn would over-penalise words of medium frequency. If every q_i is 1, this is the
full softmax. Gao et al. 2021 (arXiv 2104.10507) compare estimators of this family.

All positions of a step share one sample, so the logits are one dense [N, S] product, and the step
touches one set of rows.

N positions, S sampled words, R rows touched (sampled or target), D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from thinwire.loss.contract import Criterion, LossPlan
from thinwire.loss.precision import full_precision
from thinwire.loss.sampled_rows import plan_rows
from thinwire.loss.sampler import Sampler
from thinwire.matmul import matmul_nt
from thinwire.seeds import torch_generator

# Number of logits that are computed at a time (32 MB); more would not fit in the processor's cache.
CHUNK_LOGITS = 2**23
# The logit of a masked word. It is finite, so that a row of masked words has a softmax.
MASKED = -1e30


class SampledSoftmax(Criterion):
    """Cross-entropy with a sampled, corrected softmax, for any PyTorch loop.

    Args:
        counts: occurrences of each word in the training text, `[V]`, 0 or more.
        samples: expected number of distinct words drawn per step, 1 or more. V or more: every
            word, which is the full softmax.
        power: words are drawn in proportion to count ** power. 1: in proportion to their counts;
            0: all equally often.
        seed: the sample of a step depends only on (seed, step).
        in_bf16: round the factors of the matrix products with the drawn rows to bf16.

    Raises:
        UserError: a count is negative or not finite, the vocabulary is empty, or `samples` is
            below 1.

    Examples:
        The gradient of the output layer is sparse: it contains the rows that the step touched.

        >>> import torch, thinwire
        >>> output = torch.nn.Linear(64, 5000)
        >>> criterion = thinwire.SampledSoftmax(torch.arange(5000, 0, -1), samples=200)
        >>> optimizer = thinwire.RowAdagrad(output.parameters(), lr=0.1)
        >>> hidden = torch.randn(32, 64, requires_grad=True)
        >>> targets = torch.randint(5000, (32,))
        >>> for step in range(3):
        ...     optimizer.zero_grad()
        ...     loss = criterion(hidden, targets, output.weight, output.bias, step) / 32
        ...     loss.backward()
        ...     optimizer.step()
        >>> output.weight.grad.is_sparse, len(output.weight.grad.coalesce().values()) < 300
        (True, True)
    """

    def __init__(
        self,
        counts: Tensor | np.ndarray,
        samples: int,
        power: float = 1.0,
        seed: int = 0,
        *,
        in_bf16: bool = False,
    ) -> None:
        self.sampler = Sampler(counts, samples, power)
        self.seed, self.in_bf16 = seed, in_bf16

    def plan(self, targets_N: Tensor, step: int) -> LossPlan:
        """The rows of this step's sample, which all positions share, and of the targets."""
        sample = self.sampler.draw(torch_generator(self.seed, "sample", step=step))
        return plan_rows(sample, targets_N)

    def loss(self, hidden_ND: Tensor, plan: LossPlan, weight_RD: Tensor, bias_R: Tensor) -> Tensor:
        """The summed cross-entropy in nats, with the estimated partition function."""
        return sampled_softmax(
            hidden_ND,
            weight_RD,
            bias_R,
            plan.target_rows_N,
            plan.log_inclusion_S,
            in_bf16=self.in_bf16,
        )

    def __call__(
        self, hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor, bias_V: Tensor, step: int
    ) -> Tensor:
        """Plan, gather and compute in one call.

        Args:
            hidden_ND: hidden states, `[N, D]`.
            targets_N: the next word of each position, int64 `[N]`.
            weight_VD: output rows, `[V, D]`, a row for each of `counts`.
            bias_V: their biases, `[V]`.
            step: the number of the step, by which words are drawn.

        Returns:
            The sum of the loss over the positions, in nats: a scalar, fp32 (fp64 if an input is).
            Inputs may be fp32, fp64, bf16 or fp16, also under `torch.autocast`; gradients come in
            the types of their inputs. Those of `weight_VD` and `bias_V` are sparse.

        Raises:
            UserError: the weight has more or fewer rows than there are counts.
        """
        self.sampler.require_rows(weight_VD, bias_V)
        plan = self.plan(targets_N, step)
        weight_RD, bias_R = gather_sparse(weight_VD, bias_V, plan)
        return self.loss(hidden_ND, plan, weight_RD, bias_R)


def gather_sparse(weight_VD: Tensor, bias_V: Tensor, plan: LossPlan) -> tuple[Tensor, Tensor]:
    """The planned rows of an output layer; gradients reach the tables as sparse COO tensors."""
    assert plan.ids_R is not None
    weight_RD = F.embedding(plan.ids_R, weight_VD, sparse=True)
    bias_R = torch.gather(bias_V, 0, plan.ids_R, sparse_grad=True)
    return weight_RD, bias_R


def sampled_softmax(
    hidden_ND: Tensor,
    weight_RD: Tensor,
    bias_R: Tensor,
    target_rows_N: Tensor,
    log_inclusion_S: Tensor | None,
    *,
    in_bf16: bool = False,
) -> Tensor:
    """The summed sampled cross-entropy in nats over rows that are already gathered.

    Args:
        hidden_ND: hidden states.
        weight_RD: output rows, the S sampled words first.
        bias_R: their biases.
        target_rows_N: the row of each position's target, int64 in [0, R).
        log_inclusion_S: ln q of the sampled words.
        in_bf16: round the factors of the matrix products to bf16.
    """
    assert log_inclusion_S is not None
    with full_precision(hidden_ND, weight_RD, bias_R) as (h_ND, w_RD, b_R):
        value: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]
            h_ND, w_RD, b_R, target_rows_N, log_inclusion_S, in_bf16
        )
    return value


class _SampledSoftmax(torch.autograd.Function):
    """Computes the gradients together with the value, because both need the probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_RD: Tensor,
        bias_R: Tensor,
        target_rows_N: Tensor,
        log_inclusion_S: Tensor,
        in_bf16: bool,
    ) -> Tensor:
        S = len(log_inclusion_S)
        weight_SD = weight_RD[:S]
        offset_S = bias_R[:S] - log_inclusion_S
        d_weight_RD = torch.zeros_like(weight_RD)
        d_bias_R = torch.zeros_like(bias_R)
        d_hidden_ND = torch.empty_like(hidden_ND)
        total = hidden_ND.new_zeros(())

        for first in range(0, len(hidden_ND), max(1, CHUNK_LOGITS // S)):
            n = slice(first, first + max(1, CHUNK_LOGITS // S))
            h_nD, y_n = hidden_ND[n], target_rows_N[n]
            w_y_nD = weight_RD.index_select(0, y_n)
            target_logit_n = (h_nD * w_y_nD).sum(1) + bias_R[y_n]

            logits_nS = matmul_nt(h_nD, weight_SD, offset_S, in_bf16=in_bf16)
            hit = (y_n < S).nonzero().squeeze(1)
            logits_nS[hit, y_n[hit]] = MASKED
            # The softmax over the drawn words, and their share of the softmax that includes the
            # target. Their ln Z needs no pass: the largest probability is exp(largest logit) / Z.
            largest_n = logits_nS.amax(1)
            p_nS = torch.softmax(logits_nS, dim=1, out=logits_nS)
            margin_n = largest_n - p_nS.amax(1).log() - target_logit_n
            share_n = margin_n.sigmoid()
            total += F.softplus(margin_n).sum()

            # The share scales the narrow factors of the products, not the wide one.
            shared_h_nD = h_nD * share_n[:, None]
            expected_nD = matmul_nt(p_nS, weight_SD.t(), in_bf16=in_bf16)
            d_hidden_ND[n] = (expected_nD - w_y_nD).mul_(share_n[:, None])
            # In this order the wide factor is not copied, and only narrow factors are.
            d_weight_RD[:S] += matmul_nt(shared_h_nD.t(), p_nS.t(), in_bf16=in_bf16).t()
            d_bias_R[:S] += share_n @ p_nS
            d_weight_RD.index_add_(0, y_n, shared_h_nD, alpha=-1)
            d_bias_R.index_add_(0, y_n, share_n, alpha=-1)

        ctx.save_for_backward(d_hidden_ND, d_weight_RD, d_bias_R)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_weight_RD, d_bias_R = ctx.saved_tensors
        gradients = d_hidden_ND * d_total, d_weight_RD * d_total, d_bias_R * d_total
        return *gradients, None, None, None
