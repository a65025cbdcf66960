"""In anybody's loop: every type of hidden states and rows, every loss, every row optimiser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from thinwire import NCE, AdaptAhead, FullAdagrad, RowAdagrad, RowAdam, RowSGD, SampledSoftmax
from thinwire.loss.adaptive import AdaptiveOutput
from thinwire.loss.contract import LossPlan
from thinwire.loss.full import FullSoftmax, exact_logprob
from thinwire.loss.output import SoftmaxOutput

torch.set_num_threads(1)

V, D, N = 40, 8, 12
COUNTS = torch.arange(V, 0, -1)
HALF = [torch.bfloat16, torch.float16]
TYPES = [torch.float32, torch.float64, *HALF]
LOSSES = {"sampled": SampledSoftmax(COUNTS, samples=10), "nce": NCE(COUNTS, samples=10)}
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: RowSGD(p, lr=0.1),
    "adagrad": lambda p: RowAdagrad(p, lr=0.1),
    "adagrad_full": lambda p: FullAdagrad(p, lr=0.1),
    "adam": lambda p: RowAdam(p, lr=0.02),
    "adamw": lambda p: RowAdam(p, lr=0.02, weight_decay=0.1),
    "adaptahead": lambda p: AdaptAhead(p, lr=0.01),
}
types = pytest.mark.parametrize("dtype", TYPES, ids=str)
losses = pytest.mark.parametrize("loss", LOSSES)


def inputs(
    hidden: torch.dtype, rows: torch.dtype
) -> tuple[Tensor, Tensor, nn.Parameter, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(N, D, generator=generator).to(hidden).requires_grad_()
    weight_VD = nn.Parameter(torch.randn(V, D, generator=generator).to(rows))
    bias_V = nn.Parameter(torch.randn(V, generator=generator).to(rows))
    return hidden_ND, torch.randint(V, (N,), generator=generator), weight_VD, bias_V


@losses
@pytest.mark.parametrize("rows", TYPES, ids=str)
@pytest.mark.parametrize("hidden", TYPES, ids=str)
@pytest.mark.parametrize("autocast", [None, *HALF], ids=str)
def test_value_and_gradients_are_those_of_fp32_in_the_types_of_the_inputs(
    loss: str, rows: torch.dtype, hidden: torch.dtype, autocast: torch.dtype | None
) -> None:
    hidden_ND, targets_N, weight_VD, bias_V = inputs(hidden, rows)
    with torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
        value = LOSSES[loss](hidden_ND, targets_N, weight_VD, bias_V, 3)
    wide = torch.float64 if torch.float64 in (hidden, rows) else torch.float32
    assert value.dtype == wide and value.shape == ()
    value.backward()

    exact = [t.detach().to(wide).requires_grad_() for t in (hidden_ND, weight_VD, bias_V)]
    expected = LOSSES[loss](exact[0], targets_N, exact[1], exact[2], 3)
    expected.backward()
    assert torch.equal(value, expected)
    for given, like in zip((hidden_ND, weight_VD, bias_V), exact, strict=True):
        assert given.grad is not None and like.grad is not None
        assert given.grad.dtype == given.dtype
        assert given.grad.is_sparse == (given is not hidden_ND)
        torch.testing.assert_close(
            given.grad.to_dense(), like.grad.to_dense().to(given.dtype), rtol=0.02, atol=0.01
        )


@types
@losses
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_loop_learns(dtype: torch.dtype, loss: str, kind: str) -> None:
    """Ten words that a fixed hidden state each stands for."""
    targets_N = torch.arange(10)
    hidden_ND = torch.eye(10, dtype=dtype)
    weight_VD = nn.Parameter(torch.zeros(V, 10, dtype=dtype))
    bias_V = nn.Parameter((COUNTS / COUNTS.sum()).log().to(dtype))
    optimizer = OPTIMIZERS[kind]([weight_VD, bias_V])
    before = exact_logprob(hidden_ND, weight_VD, bias_V, targets_N).mean()
    for step in range(40):
        optimizer.zero_grad()
        LOSSES[loss](hidden_ND, targets_N, weight_VD, bias_V, step).backward()
        optimizer.step()
    assert weight_VD.dtype == bias_V.dtype == dtype
    for state in optimizer.state.values():
        assert all(t.dtype is not dtype or dtype in TYPES[:2] for t in state.values())
    after = exact_logprob(hidden_ND, weight_VD, bias_V, targets_N).mean()
    assert after > before + 0.5


@types
def test_the_full_and_the_adaptive_softmax_too(dtype: torch.dtype) -> None:
    hidden_ND, targets_N, weight_VD, bias_V = inputs(dtype, dtype)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    plan = LossPlan(ids_R=None, target_rows_N=targets_N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = FullSoftmax().loss(hidden_ND, plan, weight_VD, bias_V)
        logprob_N = exact_logprob(hidden_ND, weight_VD, bias_V, targets_N)
        output = SoftmaxOutput(weight_VD, COUNTS, FullSoftmax())
        distribution_NV = output.distribution(hidden_ND)
    value.backward()
    assert hidden_ND.grad is not None and hidden_ND.grad.dtype == dtype
    assert weight_VD.grad is not None and weight_VD.grad.dtype == dtype
    logits_NV = hidden_ND.to(wide) @ weight_VD.to(wide).T + bias_V.to(wide)
    expected = nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    torch.testing.assert_close(value, expected.sum())
    torch.testing.assert_close(logprob_N, -expected)
    assert distribution_NV.dtype == wide

    adaptive = AdaptiveOutput(COUNTS, 64)
    narrow_ND = torch.randn(N, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    narrow_ND.requires_grad_()
    if dtype is torch.float64:
        adaptive.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = adaptive.loss(narrow_ND, adaptive.plan(targets_N, 0), {})
        distribution_NV = adaptive.distribution(narrow_ND)
    value.backward()
    assert value.dtype == distribution_NV.dtype == wide
    assert narrow_ND.grad is not None and narrow_ND.grad.dtype == dtype
    torch.testing.assert_close(value, -distribution_NV[torch.arange(N), targets_N].sum())
