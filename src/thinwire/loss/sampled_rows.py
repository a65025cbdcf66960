"""From a sample and a batch's targets to the rows that a sampled loss touches."""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.loss.contract import Plan
from thinwire.loss.sampler import Sample


def plan_rows(sample: Sample, targets_N: Tensor) -> Plan:
    """The sampled words, then the targets that were not drawn; both sorted, every row once."""
    device = targets_N.device
    sample_S = sample.ids_S.to(device)
    words_U, inverse_N = torch.unique(targets_N, return_inverse=True)
    slots_U = torch.searchsorted(sample_S, words_U)
    drawn_U = sample_S[slots_U.clamp(max=len(sample_S) - 1)] == words_U
    extra_U = ~drawn_U
    slots_U[extra_U] = len(sample_S) + torch.arange(int(extra_U.sum()), device=device)
    return Plan(
        ids_R=torch.cat([sample_S, words_U[extra_U]]),
        target_rows_N=slots_U[inverse_N],
        log_inclusion_S=sample.log_inclusion_S.to(device),
    )
