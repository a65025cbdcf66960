"""The sampled softmax is unbiased where it claims to be, and the full softmax where it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from thinwire.loss import sampled as module
from thinwire.loss.full import FullSoftmax
from thinwire.loss.sampled import SampledSoftmax, gather_sparse, sampled_softmax
from thinwire.loss.sampled_rows import plan_rows
from thinwire.loss.sampler import Sample, Sampler

Outcomes = Callable[[Sampler], "list[tuple[float, Sample]]"]
COUNTS = torch.tensor([60, 30, 20, 15, 12, 10, 9])
V, D = len(COUNTS), 3


class Layer(NamedTuple):
    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor


def layer(N: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Layer:
    generator = torch.Generator().manual_seed(N)
    return Layer(
        *(
            (torch.randn(shape, generator=generator, dtype=torch.float64) * scale)
            .to(dtype)
            .requires_grad_()
            for shape in ((N, D), (V, D), (V,))
        )
    )


def log_z(at: Layer) -> Tensor:
    return torch.logsumexp(F.linear(*at), dim=1)


def from_sample(
    at: Layer, targets_N: Tensor, sample: Sample, log_q: Tensor | None = None
) -> Tensor:
    """The sampled loss, summed; `log_q` replaces the sample's own correction."""
    plan = plan_rows(sample, targets_N)
    weight_RD, bias_R = at.weight_VD[plan.ids_R], at.bias_V[plan.ids_R]
    log_q = plan.log_inclusion_S if log_q is None else log_q
    return sampled_softmax(at.hidden_ND, weight_RD, bias_R, plan.target_rows_N, log_q)


def plain(at: Layer, targets_N: Tensor, sample: Sample) -> Tensor:
    """The same loss as its docstring defines it, position by position."""
    total = at.hidden_ND.new_zeros(())
    q_of = dict(zip(sample.ids_S.tolist(), sample.log_inclusion_S.exp().tolist(), strict=True))
    for h_D, y in zip(at.hidden_ND, targets_N.tolist(), strict=True):
        s_V = at.weight_VD @ h_D + at.bias_V
        others = [s_V[i].exp() / q for i, q in q_of.items() if i != y]
        total = total + (s_V[y].exp() + sum(others)).log() - s_V[y]
    return total


def gradients(value: Tensor, at: Layer) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, tuple(at))


def expected_z(
    at: Layer, target: int, sampler: Sampler, outcomes: Outcomes, sign: float = 1.0
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Over all samples: the mean of the estimated partition function, and of its gradient."""
    mean = torch.zeros((), dtype=torch.float64)
    means = tuple(torch.zeros_like(t) for t in at)
    targets = torch.tensor([target])
    for probability, sample in outcomes(sampler):
        score = (at.hidden_ND[0] * at.weight_VD[target]).sum() + at.bias_V[target]
        # The loss is ln Z - score.
        z = (from_sample(at, targets, sample, sign * sample.log_inclusion_S) + score).exp()
        for total, gradient in zip(means, gradients(z, at), strict=True):
            total += probability * gradient
        mean += probability * z.detach()
    return mean, means


@pytest.mark.parametrize("samples", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("target", [0, 3, 6])
def test_partition_function_and_its_gradient_are_unbiased(
    samples: int, target: int, outcomes: Outcomes
) -> None:
    at, sampler = layer(1), Sampler(COUNTS, samples)
    mean, means = expected_z(at, target, sampler, outcomes)
    z = log_z(at).exp().sum()
    torch.testing.assert_close(mean, z.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(means, gradients(z, at), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sign", [-1.0, 0.0], ids=["wrong sign", "no correction"])
def test_enumeration_notices_a_wrong_correction(sign: float, outcomes: Outcomes) -> None:
    at, sampler = layer(1), Sampler(COUNTS, 3)
    mean, _ = expected_z(at, 3, sampler, outcomes, sign)
    z = float(log_z(at).exp().detach())
    assert abs(float(mean) / z - 1.0) > 0.2


def test_the_correction_is_subtracted_from_the_logit_of_a_drawn_word() -> None:
    """One drawn word of probability 1/4 stands for four: Z = e^0 + 4 e^0."""
    at = Layer(torch.zeros(1, D), torch.zeros(V, D), torch.zeros(V))
    sample = Sample(torch.tensor([2]), torch.tensor([0.25]).log())
    value = from_sample(at, torch.tensor([5]), sample)
    torch.testing.assert_close(value, torch.tensor(5.0).log())


@pytest.mark.parametrize("samples", [1, 3, 5])
def test_agrees_with_its_definition(samples: int, outcomes: Outcomes) -> None:
    """For every sample: targets that were drawn, and not; one twice; values and gradients."""
    targets = torch.tensor([0, 6, 2, 6, 4])
    at = layer(len(targets))
    for _, sample in outcomes(Sampler(COUNTS, samples)):
        mine, reference = from_sample(at, targets, sample), plain(at, targets, sample)
        torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(
            gradients(mine, at), gradients(reference, at), rtol=1e-6, atol=1e-7
        )


def test_an_accidental_hit_counts_once() -> None:
    at, targets = layer(1), torch.tensor([1])
    log_q = torch.tensor([0.5, 0.4, 0.3]).log()
    with_hit = from_sample(at, targets, Sample(torch.tensor([0, 1, 4]), log_q))
    without = from_sample(at, targets, Sample(torch.tensor([0, 4]), log_q[[0, 2]]))
    torch.testing.assert_close(with_hit, without, rtol=1e-12, atol=0)


def test_other_positions_targets_do_not_count(outcomes: Outcomes) -> None:
    """A position's loss depends on its own target and the draw, not on its neighbours."""
    targets = torch.tensor([5, 6, 0, 6])
    at = layer(len(targets))
    for _, sample in outcomes(Sampler(COUNTS, 2)):
        alone = sum(
            from_sample(at._replace(hidden_ND=at.hidden_ND[n, None]), targets[n, None], sample)
            for n in range(len(targets))
        )
        together = from_sample(at, targets, sample)
        assert isinstance(alone, Tensor)
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_with_every_word_drawn_it_is_the_full_softmax(dtype: torch.dtype) -> None:
    targets = torch.tensor([0, 6, 2, 6, 4])
    at = layer(len(targets), dtype=dtype)
    criterion = SampledSoftmax(COUNTS, samples=V)
    plan = criterion.plan(targets, step=3)
    assert plan.ids_R is not None and plan.ids_R.tolist() == list(range(V))
    mine = criterion.loss(at.hidden_ND, plan, at.weight_VD, at.bias_V)
    full = FullSoftmax()
    exact = full.loss(at.hidden_ND, full.plan(targets, 3), at.weight_VD, at.bias_V)
    stock = F.cross_entropy(F.linear(*at), targets, reduction="sum")
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype is torch.float64 else {}
    torch.testing.assert_close(mine, exact, **close)
    torch.testing.assert_close(mine, stock, **close)
    found = gradients(mine, at)
    torch.testing.assert_close(found, gradients(exact, at), **close)
    torch.testing.assert_close(found, gradients(stock, at), **close)


def test_gradients_against_finite_differences() -> None:
    targets = torch.tensor([0, 6, 2, 6])
    at, plan = layer(len(targets)), SampledSoftmax(COUNTS, 3).plan(targets, step=0)
    assert plan.ids_R is not None
    inputs = (at.hidden_ND, *(t.detach()[plan.ids_R].requires_grad_() for t in at[1:]))
    assert torch.autograd.gradcheck(
        lambda h, w, b: sampled_softmax(h, w, b, plan.target_rows_N, plan.log_inclusion_S), inputs
    )


def test_the_loss_approaches_the_full_one_as_samples_grow() -> None:
    """ln Z of an unbiased Z is too small on average, and less so the less it varies."""
    generator = torch.Generator().manual_seed(0)
    counts = 10_000 / torch.arange(1, 301)
    hidden, targets = torch.randn(20, 8, generator=generator), torch.randint(300, (20,))
    weight, bias = torch.randn(300, 8, generator=generator) / 3, counts.log()
    exact = F.cross_entropy(F.linear(hidden, weight, bias), targets)
    error, spread = [], []
    for samples in (5, 50, 250):
        criterion = SampledSoftmax(counts, samples)
        losses = torch.stack(
            [criterion(hidden, targets, weight, bias, step) / 20 for step in range(100)]
        )
        error.append(abs(float(losses.mean() - exact)))
        spread.append(float(losses.std()))
    assert error[0] > 3 * error[1] > 9 * error[2]
    assert spread[0] > spread[1] > spread[2]
    assert error[2] < 0.01


@pytest.mark.parametrize("chunk", [1, 2 * 3, 3 * 3, 10**6])
def test_chunks_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = torch.tensor([0, 6, 2, 6, 4, 1, 1])
    at, sample = layer(len(targets)), Sample(torch.tensor([0, 2, 5]), torch.zeros(3) - 0.3)
    whole = from_sample(at, targets, sample)
    expected = gradients(whole, at)
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    pieces = from_sample(at, targets, sample)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(pieces, at), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("targets", [[], [4], [4, 4, 4, 4], [6, 6], [0]], ids=str)
@pytest.mark.parametrize("sample", [[0], [4], [0, 2, 4], [6]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_few_positions_few_words_one_target(
    targets: list[int], sample: list[int], dtype: torch.dtype
) -> None:
    at = layer(len(targets), dtype=dtype)
    drawn = Sample(torch.tensor(sample), torch.full((len(sample),), -0.5))
    targets_N = torch.tensor(targets, dtype=torch.int64)
    mine = from_sample(at, targets_N, drawn)
    reference = plain(at, targets_N, drawn)
    torch.testing.assert_close(mine, reference)
    if targets:
        torch.testing.assert_close(gradients(mine, at), gradients(reference, at))
    else:
        assert not any(gradient.any() for gradient in gradients(mine, at))


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e10, 1e18])
@pytest.mark.parametrize("target", [1, 5])
def test_extreme_logits_stay_finite(scale: float, target: int) -> None:
    at = layer(4, scale, torch.float32)
    for words in ([1], [0, 1, 2, 3], [0, 4]):
        sample = Sample(torch.tensor(words), torch.zeros(len(words)) - 2.0)
        value = from_sample(at, torch.full((4,), target), sample)
        assert value.isfinite() and value >= 0
        assert all(gradient.isfinite().all() for gradient in gradients(value, at))


def test_alone_its_gradients_are_sparse_and_right() -> None:
    targets = torch.tensor([0, 6, 6])
    at, criterion = layer(3, dtype=torch.float32), SampledSoftmax(COUNTS, 2, seed=5)
    (criterion(*at_call(at, targets), step=4) / 3).backward()
    plan = criterion.plan(targets, step=4)
    assert plan.ids_R is not None
    expected = gradients(
        from_sample(at, targets, Sampler(COUNTS, 2).draw(_generator(5, 4))) / 3, at
    )
    for table, dense in zip((at.weight_VD, at.bias_V), expected[1:], strict=True):
        assert table.grad is not None and table.grad.is_sparse
        sparse = table.grad.coalesce()
        assert sparse.indices()[0].tolist() == sorted(plan.ids_R.tolist())
        torch.testing.assert_close(sparse.to_dense(), dense)
    torch.testing.assert_close(at.hidden_ND.grad, expected[0])


def at_call(at: Layer, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return at.hidden_ND, targets_N, at.weight_VD, at.bias_V


def _generator(seed: int, step: int) -> torch.Generator:
    from thinwire.seeds import torch_generator

    return torch_generator(seed, "sample", step=step)


def test_gathered_rows_are_those_of_the_plan() -> None:
    at = layer(1)
    plan = plan_rows(Sample(torch.tensor([1, 5]), torch.zeros(2)), torch.tensor([3]))
    weight_RD, bias_R = gather_sparse(at.weight_VD, at.bias_V, plan)
    assert torch.equal(weight_RD, at.weight_VD[[1, 5, 3]])
    assert torch.equal(bias_R, at.bias_V[[1, 5, 3]])


def test_steps_and_seeds_draw_differently_and_repeatably() -> None:
    targets, counts = torch.tensor([0]), torch.arange(1000, 0, -1)

    def drawn(seed: int, step: int) -> list[int]:
        plan = SampledSoftmax(counts, 20, seed=seed).plan(targets, step)
        assert plan.ids_R is not None
        ids: list[int] = plan.ids_R.tolist()
        return ids

    assert drawn(1, 1) == drawn(1, 1)
    assert len({tuple(drawn(seed, step)) for seed in (1, 2) for step in (1, 2)}) == 4


def test_second_derivatives_are_refused() -> None:
    at = layer(2)
    value = SampledSoftmax(COUNTS, V)(*at_call(at, torch.tensor([1, 2])), step=0)
    (gradient,) = torch.autograd.grad(value.square(), at.hidden_ND, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
