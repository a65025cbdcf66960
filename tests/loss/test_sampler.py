"""What is returned as a word's inclusion probability is how often it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.errors import UserError
from thinwire.loss.nce import NCE
from thinwire.loss.sampled import SampledSoftmax
from thinwire.loss.sampler import Sample, Sampler
from thinwire.seeds import torch_generator

Outcomes = Callable[[Sampler], "list[tuple[float, Sample]]"]

COUNTS = {
    "zipf": [60, 30, 20, 15, 12, 10, 9],
    "shuffled": [10, 60, 9, 20, 15, 30, 12],
    "equal": [5, 5, 5, 5, 5],
    "one huge": [10**9, 3, 2, 1, 1, 1],
    "zeros": [7, 0, 0, 3, 0],
    "steep": [4**k for k in range(7)],
    "two": [3, 1],
}


def numbers_of_samples(vocab_size: int) -> list[int]:
    return sorted({1, 2, vocab_size // 2, vocab_size - 1} - {0})


CASES = [
    pytest.param(counts, samples, power, id=f"{name}-{samples}-{power}")
    for name, counts in COUNTS.items()
    for samples in numbers_of_samples(len(counts))
    for power in (0.75, 1.0)
]


@pytest.mark.parametrize(("counts", "samples", "power"), CASES)
def test_inclusion_is_what_enumeration_finds(
    counts: list[int], samples: int, power: float, outcomes: Outcomes
) -> None:
    sampler = Sampler(torch.tensor(counts), samples, power)
    included = torch.zeros(len(counts), dtype=torch.float64)
    total = 0.0
    for probability, sample in outcomes(sampler):
        total += probability
        assert sample.ids_S.tolist() == sorted(set(sample.ids_S.tolist()))
        included[sample.ids_S] += probability
        expected = sampler.inclusion_V[sample.ids_S].log().float()
        torch.testing.assert_close(sample.log_inclusion_S, expected)
    assert total == pytest.approx(1.0)
    torch.testing.assert_close(included, sampler.inclusion_V, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("counts", "samples", "power"), CASES)
def test_frequencies_of_draws(counts: list[int], samples: int, power: float) -> None:
    sampler = Sampler(np.array(counts), samples, power)
    drawn = torch.zeros(len(counts))
    rounds = 600
    for step in range(rounds):
        drawn[sampler.draw(torch_generator(1, "test", step=step)).ids_S] += 1
    q_V = sampler.inclusion_V
    deviation = (q_V * (1 - q_V) / rounds).sqrt()
    assert ((drawn / rounds - q_V).abs() <= 4.5 * deviation + 1e-12).all()


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=60),
    st.integers(1, 70),
    st.sampled_from([0.0, 0.5, 0.75, 1.0]),
)
def test_expected_size_is_what_was_asked_for(counts: list[int], samples: int, power: float) -> None:
    sampler = Sampler(np.array(counts), samples, power)
    q_V = sampler.inclusion_V
    assert ((q_V > 0) & (q_V <= 1 + 1e-12)).all()
    vocab_size = len(counts)
    # Where words are alike and nearly all are wanted, one more point changes much at once.
    assert abs(float(q_V.sum()) - min(samples, vocab_size)) <= 1 + vocab_size / 12
    assert len(sampler.draw(torch_generator(0, "test")).ids_S) <= vocab_size


@pytest.mark.parametrize("samples", [1, 10, 100, 1000, 9000])
def test_expected_size_in_a_natural_vocabulary(samples: int) -> None:
    sampler = Sampler(1e6 / np.arange(1, 20_001), samples)
    assert float(sampler.inclusion_V.sum()) == pytest.approx(samples, abs=1.0)


@pytest.mark.parametrize("samples", range(1, 20))
def test_a_steep_distribution_gives_as_many_as_asked_for(samples: int) -> None:
    sampler = Sampler(0.5 ** np.arange(20.0) * 2**20, samples, power=1.0)
    assert float(sampler.inclusion_V.sum()) == pytest.approx(samples)


def test_words_are_drawn_in_proportion_to_a_power_of_their_counts() -> None:
    counts = np.array([64.0, 16.0, 4.0, 1.0])
    for power in (0.0, 0.5, 1.0):
        q_V = Sampler(counts, 1, power).inclusion_V.numpy()
        np.testing.assert_allclose(q_V / q_V[-1], counts**power)


def test_frequent_words_are_always_in() -> None:
    sampler = Sampler(torch.tensor([10**9, 10**9, 1, 1, 1, 1]), 4, power=1.0)
    assert sampler.inclusion_V.tolist() == pytest.approx([1, 1, 0.5, 0.5, 0.5, 0.5])
    for step in range(20):
        assert {0, 1} < set(sampler.draw(torch_generator(0, "test", step=step)).ids_S.tolist())


@pytest.mark.parametrize(("vocab_size", "samples"), [(1, 1), (1, 9), (5, 5), (5, 6), (5, 10**9)])
def test_as_many_as_there_are_means_all(vocab_size: int, samples: int) -> None:
    sample = Sampler(torch.arange(vocab_size), samples).draw(torch.Generator())
    assert sample.ids_S.tolist() == list(range(vocab_size))
    assert sample.log_inclusion_S.tolist() == [0.0] * vocab_size


def test_words_that_never_occur_are_drawn_too() -> None:
    sampler = Sampler(torch.tensor([5, 0, 0]), 1, power=1.0)
    assert sampler.inclusion_V.tolist() == pytest.approx([5 / 7, 1 / 7, 1 / 7])


def test_the_same_seed_draws_the_same() -> None:
    sampler = Sampler(torch.arange(1000, 0, -1), 50)

    def draw(step: int) -> list[int]:
        ids: list[int] = sampler.draw(torch_generator(3, "sample", step=step)).ids_S.tolist()
        return ids

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(9)
    assert torch.equal(before, torch.get_rng_state())  # nothing ambient is touched


def test_log_inclusion_of_any_words() -> None:
    sampler = Sampler(torch.tensor([9, 5, 2, 1]), 2)
    ids = torch.tensor([3, 0, 0])
    torch.testing.assert_close(sampler.log_inclusion(ids), sampler.inclusion_V[ids].log().float())


def test_a_draw_touches_no_more_than_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that a draw makes is as small as the sample, whatever the vocabulary."""
    sampler = Sampler(np.arange(100_000, 0, -1), 20)
    sizes: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        sampler.draw(torch_generator(0, "test"))
    assert sizes and max(sizes) <= 40


@pytest.mark.parametrize(("vocab_size", "samples"), [(5, 0), (5, -1), (0, 3)])
def test_nothing_to_draw(vocab_size: int, samples: int) -> None:
    with pytest.raises(UserError, match=f"cannot draw {samples} words from .* of {vocab_size}"):
        Sampler(torch.ones(vocab_size), samples)


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (torch.ones(3, 4), r"counts have the shape \[3, 4\], but must be one number a word"),
        (torch.tensor([3, -1, 2]), "the count of word 1 is -1, but counts must be finite"),
        (torch.tensor([3.0, 1.0, float("nan")]), "the count of word 2 is nan, but counts must be"),
        (torch.tensor([float("inf"), 1.0]), "the count of word 0 is inf, but counts must be"),
    ],
)
def test_counts_that_are_none_are_refused(counts: torch.Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Sampler(counts, 2)


@pytest.mark.parametrize("make", [SampledSoftmax, NCE])
@pytest.mark.parametrize("num_counts", [5, 7])
def test_an_output_layer_of_another_vocabulary_is_refused(make: Any, num_counts: int) -> None:
    criterion = make(torch.ones(num_counts), 3)
    hidden, targets = torch.randn(2, 4), torch.tensor([0, 5])
    with pytest.raises(
        UserError, match=f"counts of {num_counts} words, but the output weight has 6"
    ):
        criterion(hidden, targets, torch.randn(6, 4), torch.randn(6), 0)
    with pytest.raises(UserError, match=f"words, but the output bias has {num_counts + 1} rows"):
        criterion(hidden, targets, torch.randn(num_counts, 4), torch.randn(num_counts + 1), 0)


def test_counts_of_any_type() -> None:
    expected = Sampler(torch.tensor([8, 4, 2, 1]), 2).inclusion_V
    for counts in (torch.tensor([8, 4, 2, 1], dtype=torch.bfloat16), np.array([8, 4, 2, 1], "u2")):
        assert torch.equal(Sampler(counts, 2).inclusion_V, expected)
