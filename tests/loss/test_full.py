"""The full softmax, in pieces, is PyTorch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from thinwire.loss import full as module
from thinwire.loss.full import FullSoftmax, exact_logprob

V, D = 23, 4


def layer(N: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(N)
    return tuple(
        (torch.randn(shape, generator=generator) * scale).to(dtype).requires_grad_()
        for shape in ((N, D), (V, D), (V,))
    )


def full(at: tuple[Tensor, ...], targets_N: Tensor) -> Tensor:
    criterion = FullSoftmax()
    plan = criterion.plan(targets_N, step=0)
    assert plan.ids_R is None  # every row
    return criterion.loss(at[0], plan, at[1], at[2])


def stock(at: tuple[Tensor, ...], targets_N: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(*at), targets_N, reduction="sum")


@pytest.mark.parametrize("N", [0, 1, 7])
@pytest.mark.parametrize("chunk", [1, 3 * V, 2**26])
def test_value_and_gradients(N: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    at, targets = layer(N), torch.arange(N) % V
    mine, reference = full(at, targets), stock(at, targets)
    torch.testing.assert_close(mine, reference)
    torch.testing.assert_close(
        torch.autograd.grad(mine / max(N, 1), at), torch.autograd.grad(reference / max(N, 1), at)
    )


def test_in_double_it_agrees_to_the_last_digits() -> None:
    at, targets = layer(5, dtype=torch.float64), torch.tensor([0, 22, 3, 3, 9])
    mine, reference = full(at, targets), stock(at, targets)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(mine, reference, **close)
    torch.testing.assert_close(
        torch.autograd.grad(mine, at), torch.autograd.grad(reference, at), **close
    )


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e10, 1e18])
def test_extreme_logits_stay_finite(scale: float) -> None:
    at, targets = layer(4, scale), torch.tensor([0, 5, 9, 9])
    value = full(at, targets)
    assert value.isfinite() and value >= 0
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, at))


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (1024, 1024)])
@pytest.mark.parametrize("N", [0, 1, 7])
@pytest.mark.parametrize("scale", [0.0, 1.0, 60.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, 200.0, -200.0])
def test_exact_logprob(
    tile: tuple[int, int], N: int, scale: float, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE_POSITIONS", tile[0])
    monkeypatch.setattr(module, "TILE_WORDS", tile[1])
    hidden_ND, weight_VD, bias_V = (t.detach() for t in layer(N, scale))
    bias_V = bias_V + shift
    targets_N = torch.arange(N) * 5 % V
    logits_NV = F.linear(hidden_ND.double(), weight_VD.double(), bias_V.double())
    expected = torch.log_softmax(logits_NV, dim=1)[torch.arange(N), targets_N]
    found = exact_logprob(hidden_ND, weight_VD, bias_V, targets_N)
    # Logits of a million are themselves exact to a tenth only.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * (1 + scale**2))
