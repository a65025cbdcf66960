"""The rows of a sampled loss: each once, and each target among them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.loss.sampled_rows import plan_rows
from thinwire.loss.sampler import Sample

ids = st.integers(0, 12)


def sample_of(words: set[int]) -> Sample:
    ids_S = torch.tensor(sorted(words))
    return Sample(ids_S, -0.1 * torch.arange(len(ids_S)))


@given(st.sets(ids, min_size=1), st.lists(ids))
def test_every_row_once_and_every_target_in_its_place(words: set[int], targets: list[int]) -> None:
    sample = sample_of(words)
    plan = plan_rows(sample, torch.tensor(targets, dtype=torch.int64))
    assert plan.ids_R is not None and plan.log_inclusion_S is not None
    extra = sorted(set(targets) - words)
    assert plan.ids_R.tolist() == [*sorted(words), *extra]
    assert plan.ids_R[plan.target_rows_N].tolist() == targets
    assert torch.equal(plan.log_inclusion_S, sample.log_inclusion_S)
