"""Noise-contrastive estimation: tell the target from noise words by logistic regression.

Mnih & Teh 2012 (arXiv 1206.6426). If the noise contains k q(w) copies of word w on average, the
logit of w being the target is s(w, h) - ln Z - ln(k q(w)). At the optimum, exp(s - ln Z) is the
normalised probability, so training computes no partition function. Here the noise is one sample
without replacement, shared by all positions; the expected number of copies of w is then its
inclusion probability. As in the theory, a noise word may be the target itself. Z is 1: the output
biases start at the log-probabilities of the words, so the model is normalised at the start.

N positions, S noise words, R rows touched (noise or target), D width.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from thinwire.loss.contract import Criterion, LossPlan
from thinwire.loss.precision import full_precision
from thinwire.loss.sampled import gather_sparse
from thinwire.loss.sampled_rows import plan_rows
from thinwire.loss.sampler import Sampler
from thinwire.seeds import torch_generator


class NCE(Criterion):
    """Noise-contrastive estimation with noise that all positions of a step share.

    The loss is a sum of logistic losses, which cannot be compared with a cross-entropy.

    Args:
        counts: occurrences of each word in the training text, `[V]`, 0 or more.
        samples: expected number of distinct noise words drawn per step, 1 or more.
        power: noise is drawn in proportion to count ** power.
        seed: the noise of a step depends only on (seed, step).
        in_bf16: round the factors of the matrix products with the drawn rows to bf16.

    Raises:
        UserError: a count is negative or not finite, the vocabulary is empty, or `samples` is
            below 1.

    Examples:
        >>> import torch, thinwire
        >>> output = torch.nn.Linear(64, 5000)
        >>> criterion = thinwire.NCE(torch.arange(5000, 0, -1), samples=200)
        >>> hidden, targets = torch.randn(32, 64), torch.randint(5000, (32,))
        >>> loss = criterion(hidden, targets, output.weight, output.bias, step=0) / 32
        >>> loss.backward()
        >>> output.weight.grad.is_sparse
        True
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
        """The rows of this step's noise, which is shared by all positions, and of the targets."""
        sample = self.sampler.draw(torch_generator(self.seed, "sample", step=step))
        return plan_rows(sample, targets_N)

    def loss(self, hidden_ND: Tensor, plan: LossPlan, weight_RD: Tensor, bias_R: Tensor) -> Tensor:
        """The summed logistic loss in nats: not a cross-entropy, and not comparable with one."""
        assert plan.log_inclusion_S is not None and plan.ids_R is not None
        S = len(plan.log_inclusion_S)
        with full_precision(hidden_ND, weight_RD, bias_R) as (h_ND, w_RD, b_R):
            offset_S = b_R[:S] - plan.log_inclusion_S
            if self.in_bf16:
                product_NS = F.linear(h_ND.bfloat16(), w_RD[:S].bfloat16())
                noise_logit_NS = product_NS.to(h_ND.dtype) + offset_S
            else:
                noise_logit_NS = F.linear(h_ND, w_RD[:S], offset_S)
            target_log_inclusion_N = self.sampler.log_inclusion(plan.ids_R)[plan.target_rows_N]
            target_logit_N = (
                (h_ND * w_RD.index_select(0, plan.target_rows_N)).sum(1)
                + b_R[plan.target_rows_N]
                - target_log_inclusion_N
            )
            return F.softplus(-target_logit_N).sum() + F.softplus(noise_logit_NS).sum()

    def __call__(
        self, hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor, bias_V: Tensor, step: int
    ) -> Tensor:
        """Plan, gather and compute in one call.

        Args:
            hidden_ND: hidden states, `[N, D]`.
            targets_N: the next word of each position, int64 `[N]`.
            weight_VD: output rows, `[V, D]`, a row for each of `counts`.
            bias_V: their biases, `[V]`.
            step: the number of the step, by which noise is drawn.

        Returns:
            The sum of the logistic losses over positions and noise, in nats: a scalar, fp32 (fp64
            if an input is). Types and gradients are as those of `SampledSoftmax`.

        Raises:
            UserError: the weight has more or fewer rows than there are counts.
        """
        self.sampler.require_rows(weight_VD, bias_V)
        plan = self.plan(targets_N, step)
        weight_RD, bias_R = gather_sparse(weight_VD, bias_V, plan)
        return self.loss(hidden_ND, plan, weight_RD, bias_R)
