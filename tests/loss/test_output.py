"""The softmax output: what an untrained one predicts, and one distribution from all sides."""

from __future__ import annotations

import torch

from thinwire.loss.full import FullSoftmax
from thinwire.loss.output import SoftmaxOutput

COUNTS = torch.tensor([70, 20, 10, 0])


def output(weight_VD: torch.Tensor) -> SoftmaxOutput:
    return SoftmaxOutput(torch.nn.Parameter(weight_VD), COUNTS, FullSoftmax())


def test_untrained_it_predicts_the_unigram() -> None:
    """A word that never occurred counts as one that occurred once."""
    made = output(torch.zeros(4, 3))
    found = made.distribution(torch.randn(2, 3)).exp()
    torch.testing.assert_close(found, torch.tensor([[70, 20, 10, 1]] * 2) / 101)


def test_all_views_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    made, hidden_ND = (
        output(torch.randn(4, 3, generator=generator)),
        torch.randn(5, 3, generator=generator),
    )
    targets_N = torch.tensor([0, 3, 2, 1, 1])
    logprob_NV = made.distribution(hidden_ND)
    torch.testing.assert_close(logprob_NV.exp().sum(1), torch.ones(5))
    logprob_N = made.logprob(hidden_ND, targets_N)
    torch.testing.assert_close(logprob_N, logprob_NV[torch.arange(5), targets_N])
    loss = made.loss(hidden_ND, made.plan(targets_N, 0), made.tables())
    torch.testing.assert_close(loss, -logprob_N.sum())


def test_its_tables_are_a_row_and_a_bias_a_word() -> None:
    made = output(torch.zeros(4, 3))
    assert {name: list(t.shape) for name, t in made.tables().items()} == {
        "weight": [4, 3],
        "bias": [4],
    }
