"""Noise-contrastive estimation: tell the target from noise words by logistic regression.

Mnih & Teh 2012 (arXiv 1206.6426). With noise drawn at an expected k q(w) copies of word w, a word
is the target's with the logit s(w, h) - ln Z - ln(k q(w)); at the optimum exp(s - ln Z) is the
normalised probability, so that no partition function is computed in training. As implemented here
the noise is one draw without replacement shared by all positions, so that the expected number of
copies of w is its inclusion probability, and a noise word may be the target itself, as the theory
has it. Z is 1: the output biases start at the log-probabilities of the words, with which the model
starts normalised.

N positions, S noise words, R rows touched (noise or target), D width.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from thinwire.loss.contract import Criterion, Plan
from thinwire.loss.precision import full_precision
from thinwire.loss.sampled import gather_sparse
from thinwire.loss.sampled_rows import plan_rows
from thinwire.loss.sampler import Sampler
from thinwire.seeds import torch_generator


class NCE(Criterion):
    """Noise-contrastive estimation with noise shared by the batch.

    Args:
        counts: occurrences of each word in the training text, `[V]`.
        samples: expected number of distinct noise words drawn a step.
        power: noise is drawn in proportion to count ** power.
        seed: draws depend on (seed, step) alone.
        in_bf16: round the factors of the matrix products with the drawn rows to bf16.
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

    def plan(self, targets_N: Tensor, step: int) -> Plan:
        """The rows of this step's noise, which is shared by all positions, and of the targets."""
        sample = self.sampler.draw(torch_generator(self.seed, "sample", step=step))
        return plan_rows(sample, targets_N)

    def loss(self, hidden_ND: Tensor, plan: Plan, weight_RD: Tensor, bias_R: Tensor) -> Tensor:
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
        """Plan, gather and compute in one call; see `SampledSoftmax`.

        The sum that comes back is of logistic losses: not a cross-entropy.
        """
        self.sampler.require_rows(weight_VD, bias_V)
        plan = self.plan(targets_N, step)
        weight_RD, bias_R = gather_sparse(weight_VD, bias_V, plan)
        return self.loss(hidden_ND, plan, weight_RD, bias_R)
