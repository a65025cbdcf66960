"""NCE: at the true distribution nothing pulls, and away from it everything pulls towards it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from thinwire.loss.nce import NCE
from thinwire.loss.sampled_rows import plan_rows
from thinwire.loss.sampler import Sample, Sampler
from thinwire.optim.rowwise import RowSGD

Outcomes = Callable[[Sampler], "list[tuple[float, Sample]]"]
COUNTS = torch.tensor([50, 20, 15, 10, 5])
P_V = COUNTS.double() / COUNTS.sum()
V = len(COUNTS)


def expected_gradient(criterion: NCE, logits_V: Tensor, outcomes: Outcomes) -> Tensor:
    """Over all noise and all targets: the mean gradient of the loss by the words' biases."""
    hidden = torch.zeros(1, 2, dtype=torch.float64)
    weight = torch.zeros(V, 2, dtype=torch.float64)
    mean_V = torch.zeros(V, dtype=torch.float64)
    for probability, noise in outcomes(criterion.sampler):
        for word in range(V):
            plan = plan_rows(noise, torch.tensor([word]))
            bias_V = logits_V.clone().requires_grad_()
            value = criterion.loss(hidden, plan, weight[plan.ids_R], bias_V[plan.ids_R])
            mean_V += probability * P_V[word] * torch.autograd.grad(value, bias_V)[0]
    return mean_V


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_at_the_true_distribution_the_expected_gradient_vanishes(
    samples: int, power: float, outcomes: Outcomes
) -> None:
    criterion = NCE(COUNTS, samples, power)
    gradient_V = expected_gradient(criterion, P_V.log(), outcomes)
    torch.testing.assert_close(gradient_V, torch.zeros_like(gradient_V), rtol=0, atol=1e-7)


def test_elsewhere_it_pulls_back(outcomes: Outcomes) -> None:
    """Also where the distribution is right, but not normalised: Z is learnt to be 1."""
    criterion = NCE(COUNTS, 3)
    for shift in (-0.5, 0.5):
        gradient_V = expected_gradient(criterion, P_V.log() + shift, outcomes)
        assert (gradient_V.sign() == torch.sign(torch.tensor(shift))).all()


def test_agrees_with_its_definition() -> None:
    """Logistic regression on the ratio of the model to the noise; the noise may be the target."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 2, generator=generator, requires_grad=True)
    weight, bias = torch.randn(V, 2, generator=generator), torch.randn(V, generator=generator)
    targets, criterion = torch.tensor([4, 0, 0]), NCE(COUNTS, 2)
    plan = criterion.plan(targets, step=1)
    assert plan.ids_R is not None and plan.log_inclusion_S is not None
    mine = criterion.loss(hidden, plan, weight[plan.ids_R], bias[plan.ids_R])
    noise = plan.ids_R[: len(plan.log_inclusion_S)]
    ratio = (hidden @ weight.T + bias).exp() / criterion.sampler.inclusion_V.float()
    from_data = ratio / (1 + ratio)
    reference = -(
        from_data[torch.arange(3), targets].log().sum() + (1 - from_data[:, noise]).log().sum()
    )
    torch.testing.assert_close(mine, reference)
    torch.testing.assert_close(
        torch.autograd.grad(mine, hidden), torch.autograd.grad(reference, hidden)
    )


def test_learns_a_distribution_and_its_normalisation() -> None:
    generator = torch.Generator().manual_seed(0)
    bias_V = torch.nn.Parameter(torch.full((V,), -3.0))
    weight, hidden = torch.zeros(V, 1), torch.zeros(64, 1)
    criterion, rows = NCE(torch.ones(V), samples=4), RowSGD([bias_V], lr=1.0)
    for step in range(600):
        rows.param_groups[0]["lr"] = 1.0 / (1 + step / 100)
        targets = torch.multinomial(P_V, 64, replacement=True, generator=generator)
        plan = criterion.plan(targets, step)
        assert plan.ids_R is not None
        rows_R = bias_V.detach()[plan.ids_R].requires_grad_()
        (criterion.loss(hidden, plan, weight[plan.ids_R], rows_R) / 64).backward()
        assert rows_R.grad is not None
        rows.update_rows(bias_V, plan.ids_R, rows_R.grad)
    torch.testing.assert_close(bias_V.detach().exp().double(), P_V, rtol=0, atol=0.03)
