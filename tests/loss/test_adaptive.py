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


def test_ids_in_any_order_give_the_same_loss_as_those_by_falling_frequency() -> None:
    counts_V = torch.arange(40, 0, -1)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    falling, given = output(), AdaptiveOutput(counts_V[shuffled], 64)
    given.load_state_dict(falling.state_dict())
    hidden_ND, targets_N = hidden(40), torch.arange(40)
    # Word i of the second is word shuffled[i] of the first.
    expected_NV = falling.distribution(hidden_ND)
    torch.testing.assert_close(given.distribution(hidden_ND), expected_NV[:, shuffled])
    expected_N = falling.logprob(hidden_ND, shuffled)
    torch.testing.assert_close(given.logprob(hidden_ND, targets_N), expected_N)
    loss = given.loss(hidden_ND, given.plan(targets_N, 0), {})
    torch.testing.assert_close(loss, -expected_N.sum())


def test_frequent_words_are_in_the_head_whatever_their_ids() -> None:
    counts_V = torch.arange(40)  # the last word is the most frequent
    made = AdaptiveOutput(counts_V, 64)
    made.loss(hidden(1), made.plan(torch.tensor([39]), 0), {}).backward()
    assert all(p.grad is None for n, p in made.named_parameters() if "tail" in n)
    assert made.rank_V.tolist() == list(range(39, -1, -1))
    assert "rank_V" not in made.state_dict()


def test_equal_counts_keep_the_order_of_ids() -> None:
    assert AdaptiveOutput(torch.tensor([1, 5, 5, 1, 9]), 64).rank_V.tolist() == [3, 1, 2, 4, 0]
