"""The rows that a sampled loss touches: those of a sample and of a batch's targets."""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.loss.contract import LossPlan
from thinwire.loss.sampler import Sample


def plan_rows(sample: Sample, targets_N: Tensor) -> LossPlan:
    """Plan the sampled words, then the targets that were not drawn, both sorted."""
    device = targets_N.device
    sample_S = sample.ids_S.to(device)
    words_U, inverse_N = torch.unique(targets_N, return_inverse=True)
    slots_U = torch.searchsorted(sample_S, words_U)
    drawn_U = sample_S[slots_U.clamp(max=len(sample_S) - 1)] == words_U
    extra_U = ~drawn_U
    slots_U[extra_U] = len(sample_S) + torch.arange(int(extra_U.sum()), device=device)
    return LossPlan(
        ids_R=torch.cat([sample_S, words_U[extra_U]]),
        target_rows_N=slots_U[inverse_N],
        log_inclusion_S=sample.log_inclusion_S.to(device),
    )
