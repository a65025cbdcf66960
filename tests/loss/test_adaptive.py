"""The adaptive softmax is a distribution, and what it cannot do it refuses."""

from __future__ import annotations

import pytest
import torch

from thinwire.errors import UserError
from thinwire.loss.adaptive import AdaptiveOutput


def output(vocab_size: int = 40, width: int = 64) -> AdaptiveOutput:
    made = AdaptiveOutput(torch.arange(vocab_size, 0, -1), width)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3, generator=generator)
    return made


def hidden(N: int) -> torch.Tensor:
    return torch.randn(N, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("vocab_size", [2, 3, 4, 7, 40])
def test_all_views_agree(vocab_size: int) -> None:
    made, hidden_ND = output(vocab_size), hidden(vocab_size)
    targets_N = torch.arange(vocab_size)
    logprob_NV = made.distribution(hidden_ND)
    torch.testing.assert_close(logprob_NV.exp().sum(1), torch.ones(vocab_size))
    logprob_N = made.logprob(hidden_ND, targets_N)
    torch.testing.assert_close(logprob_N, logprob_NV.diagonal())
    loss = made.loss(hidden_ND, made.plan(targets_N, step=0), {})
    torch.testing.assert_close(loss, -logprob_N.sum())


def test_it_touches_no_rows_and_only_the_clusters_it_visits() -> None:
    made = output()
    assert made.tables() == {}
    made.loss(hidden(3), made.plan(torch.tensor([0, 0, 1]), 0), {}).backward()
    grads = {name: p.grad is not None for name, p in made.named_parameters()}
    assert grads["softmax.head.weight"]
    assert [n for n, has in grads.items() if has and "tail" in n] == [
        "softmax.tail.0.0.weight",
        "softmax.tail.0.1.weight",
    ]


def test_a_vocabulary_too_small_to_be_cut() -> None:
    with pytest.raises(UserError, match=r"cuts the vocabulary in 4, but this one has only 1 "):
        AdaptiveOutput(torch.ones(1), 64)


def test_a_width_too_small_to_be_narrowed() -> None:
    with pytest.raises(UserError, match=r"must be at least 64, and is 63"):
        AdaptiveOutput(torch.ones(40), 63)
