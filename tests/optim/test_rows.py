"""What holds for every row optimiser, whatever its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from thinwire.optim import AdaptAhead, FullAdagrad, RowAdagrad, RowAdam, RowOptimizer, RowSGD
from thinwire.optim.rows import write

Make = Callable[[list[Tensor]], RowOptimizer]

OPTIMIZERS = [
    pytest.param(lambda p: RowSGD(p, lr=0.1), id="sgd"),
    pytest.param(lambda p: RowAdagrad(p, lr=0.1), id="adagrad"),
    pytest.param(lambda p: FullAdagrad(p, lr=0.1), id="adagrad_full"),
    pytest.param(lambda p: RowAdam(p, lr=0.1), id="adam"),
    pytest.param(lambda p: RowAdam(p, lr=0.1, weight_decay=0.5), id="adamw"),
    pytest.param(lambda p: AdaptAhead(p, lr=0.1), id="adaptahead"),
]
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(randn(*shape, seed=seed))


@every_optimizer
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 4)])
def test_sparse_gradients_with_duplicates_are_merged(make: Make, shape: tuple[int, ...]) -> None:
    by_step, by_rows = table(*shape), table(*shape)
    stepping, updating = make([by_step]), make([by_rows])
    for seed in range(3):
        grad = randn(4, *shape[1:], seed=seed)
        by_step.grad = torch.sparse_coo_tensor([[5, 1, 5, 0]], grad, shape, check_invariants=True)
        stepping.step()
        merged = torch.stack([grad[3], grad[1], grad[0] + grad[2]])
        updating.update_rows(by_rows, torch.tensor([0, 1, 5]), merged)
    assert torch.equal(by_step, by_rows)


@every_optimizer
def test_an_embedding_trains_as_it_does_densely(make: Make) -> None:
    sparse = nn.Embedding(5, 3, sparse=True)
    dense = nn.Embedding(5, 3, _weight=sparse.weight.detach().clone())
    optimizers = make([sparse.weight]), make([dense.weight])
    for _ in range(3):
        for embedding, optimizer in zip((sparse, dense), optimizers, strict=True):
            optimizer.zero_grad()
            embedding(torch.tensor([4, 2, 0, 1, 3, 3])).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(sparse.weight, dense.weight)


@every_optimizer
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 4)])
def test_all_rows_by_none_and_by_name_agree(make: Make, shape: tuple[int, ...]) -> None:
    by_none, by_name = table(*shape), table(*shape)
    all_rows, named_rows = make([by_none]), make([by_name])
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    for seed in range(3):
        grad = randn(*shape, seed=seed)
        all_rows.update_rows(by_none, None, grad)
        named_rows.update_rows(by_name, order, grad[order])
    torch.testing.assert_close(by_none, by_name)


@every_optimizer
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 4)])
def test_untouched_rows_keep_their_bits(make: Make, shape: tuple[int, ...]) -> None:
    parameter = table(*shape)
    optimizer = make([parameter])
    optimizer.update_rows(parameter, torch.tensor([0, 2, 3]), randn(3, *shape[1:]))
    before = {name: tensor.clone() for name, tensor in optimizer.state[parameter].items()}
    before["parameter"] = parameter.detach().clone()

    optimizer.update_rows(parameter, torch.tensor([1, 3]), randn(2, *shape[1:], seed=1))
    after = dict(optimizer.state[parameter], parameter=parameter.detach())
    untouched = torch.tensor([0, 2, 4, 5])
    for name in before.keys() - {"step", "decay_sum"}:
        assert torch.equal(before[name][untouched], after[name][untouched]), name
    assert not torch.equal(before["parameter"][1], after["parameter"][1])


@every_optimizer
def test_one_row_and_no_row(make: Make) -> None:
    parameter = table(3, 4)
    optimizer = make([parameter])
    before = parameter.detach().clone()
    optimizer.update_rows(parameter, torch.empty(0, dtype=torch.int64), torch.empty(0, 4))
    assert torch.equal(parameter, before)
    optimizer.update_rows(parameter, torch.tensor([1]), torch.ones(1, 4))
    assert torch.equal(parameter[[0, 2]], before[[0, 2]])
    assert (parameter[1] != before[1]).all()


@every_optimizer
def test_gradients_are_left_as_they_were(make: Make) -> None:
    parameter, grad = table(4, 3), randn(2, 3)
    optimizer = make([parameter])
    optimizer.update_rows(parameter, torch.tensor([1, 3]), grad)
    assert torch.equal(grad, randn(2, 3))
    parameter.grad = randn(4, 3)
    optimizer.step()
    assert torch.equal(parameter.grad, randn(4, 3))


@every_optimizer
def test_a_zero_gradient_moves_nothing_and_is_finite(make: Make) -> None:
    parameter = table(4, 3)
    optimizer = make([parameter])
    optimizer.update_rows(parameter, torch.tensor([1, 3]), torch.zeros(2, 3))
    assert parameter.isfinite().all()
    if optimizer.param_groups[0].get("weight_decay", 0) == 0:
        assert torch.equal(parameter, table(4, 3))


@every_optimizer
@pytest.mark.parametrize("all_rows", [True, False])
def test_many_rows_are_updated_in_pieces(
    make: Make, all_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = table(10, 4), table(10, 4)
    at_once, piecewise = make([whole]), make([pieces])
    for seed, ids in enumerate([[0, 1, 2, 3, 5, 8, 9], [1, 2, 7], []]):
        ids_R = None if all_rows else torch.tensor(ids, dtype=torch.int64)
        grad_R = randn(10 if ids_R is None else len(ids), 4, seed=seed)
        at_once.update_rows(whole, ids_R, grad_R)
        with monkeypatch.context() as context:
            if piecewise._piece_elements is not None:
                context.setattr(type(piecewise), "_piece_elements", 12)
            piecewise.update_rows(pieces, ids_R, grad_R)
    torch.testing.assert_close(whole, pieces)
    for name, tensor in at_once.state[whole].items():
        torch.testing.assert_close(tensor, piecewise.state[pieces][name])


class LargestOutput(TorchDispatchMode):
    """Records how many elements the largest result of an operation has.

    An operation in place returns all of what it was given, so one that swept a table counts as the
    table. The four that visit only the rows they are given are known by name.
    """

    BY_ROW = ("index_copy_", "index_add_", "index_fill_", "scatter_add_")

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        strided = isinstance(result, Tensor) and result.layout is torch.strided
        if strided and name not in (*self.BY_ROW, "view", "detach"):
            self.num_elements = max(self.num_elements, result.numel())
        return result


@every_optimizer
@pytest.mark.parametrize("width", [(), (4,)])
def test_cost_follows_the_touched_rows(make: Make, width: tuple[int, ...]) -> None:
    parameter = table(1000, *width)
    optimizer = make([parameter])
    ids_R = torch.tensor([7, 900])
    with LargestOutput() as largest:
        optimizer.update_rows(parameter, ids_R, randn(2, *width))
    assert largest.num_elements <= 2 * math.prod(width)

    parameter.grad = torch.sparse_coo_tensor(
        ids_R[None], randn(2, *width), parameter.shape, is_coalesced=True, check_invariants=True
    )
    with LargestOutput() as largest:
        optimizer.step()
    assert largest.num_elements <= 2 * math.prod(width)
    with LargestOutput() as largest:
        optimizer.update_rows(parameter, None, randn(1000, *width))
    assert largest.num_elements == 1000 * math.prod(width)


@every_optimizer
def test_a_schedulers_rate_is_used(make: Make) -> None:
    parameter = table(4, 3)
    optimizer = make([parameter])
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    optimizer.update_rows(parameter, torch.tensor([1]), randn(1, 3))
    assert torch.equal(parameter, table(4, 3))


@every_optimizer
def test_torchs_state_dict_resumes_exactly(make: Make) -> None:
    straight = table(6, 4).to(torch.bfloat16).detach().requires_grad_()
    first = make([straight])
    for seed in range(3):
        first.update_rows(straight, torch.tensor([seed, 5]), randn(2, 4, seed=seed))
    resumed = straight.detach().clone().requires_grad_()
    second = make([resumed])
    second.load_state_dict(first.state_dict())
    for seed in range(3):
        first.update_rows(straight, torch.tensor([seed, 4]), randn(2, 4, seed=seed))
        second.update_rows(resumed, torch.tensor([seed, 4]), randn(2, 4, seed=seed))
    assert torch.equal(straight, resumed)
    for name, tensor in first.state[straight].items():
        assert torch.equal(tensor, second.state[resumed][name])
        assert tensor.dtype == second.state[resumed][name].dtype


@every_optimizer
def test_a_closure_is_called(make: Make) -> None:
    parameter = table(2, 2)
    optimizer = make([parameter])

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == table(2, 2).square().sum().item()
    assert not torch.equal(parameter, table(2, 2))


def test_what_does_not_fit_is_refused() -> None:
    parameter = table(3, 2)
    with pytest.raises(ValueError, match=r"gradient is \[2, 3\], its rows \[2, 2\]"):
        RowSGD([parameter], lr=0.1).update_rows(parameter, torch.tensor([0, 1]), randn(2, 3))
    with pytest.raises(ValueError, match="does not hold"):
        RowSGD([table(2, 2)], lr=0.1).update_rows(table(2, 2), None, randn(2, 2))


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_rows_are_written_wherever_the_table_lies(width: int, offset: int) -> None:
    buffer = randn(offset + 5 * width)
    view = buffer[offset:].view(5, width)
    expected = view.clone()
    rows = randn(2, width, seed=1)
    write(view, torch.tensor([3, 1]), rows)
    expected[3], expected[1] = rows[0], rows[1]
    assert torch.equal(view, expected)
