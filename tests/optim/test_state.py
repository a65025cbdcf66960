"""State by name: a round trip loses no bit, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from thinwire.errors import UserError
from thinwire.optim import (
    OptimConfig,
    dense_optimizer,
    load_named_state,
    named_state,
    row_optimizer,
)
from thinwire.optim.config import DenseKind, RowKind

Make = Callable[[list[nn.Parameter]], Optimizer]

BUILT = [
    *[
        pytest.param(lambda p, kind=kind: dense_optimizer(p, OptimConfig(kind=kind)), id=kind)
        for kind in get_args(DenseKind)
    ],
    *[
        pytest.param(
            lambda p, rows=rows: row_optimizer(p, OptimConfig(rows=rows)), id=f"rows-{rows}"
        )
        for rows in get_args(RowKind)
    ],
]
OF_TORCH = [
    pytest.param(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), id="torch-momentum"),
    pytest.param(lambda p: torch.optim.Adam(p, 0.1, amsgrad=True), id="torch-amsgrad"),
    pytest.param(lambda p: torch.optim.NAdam(p, 0.1), id="torch-nadam"),
    pytest.param(lambda p: torch.optim.RMSprop(p, 0.1, centered=True), id="torch-rmsprop"),
]


def make_parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        "table": nn.Parameter(torch.randn(5, 4, generator=generator)),
        "head.bias": nn.Parameter(torch.randn(5, generator=generator)),
    }


def names_of(parameters: dict[str, nn.Parameter]) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in parameters.items()}


def train(parameters: dict[str, nn.Parameter], optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for parameter in parameters.values():
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("make", [*BUILT, *OF_TORCH])
@pytest.mark.parametrize("num_steps", [0, 3])
def test_going_on_from_a_saved_state_loses_no_bit(make: Make, num_steps: int) -> None:
    straight = make_parameters()
    first = make(list(straight.values()))
    train(straight, first, range(num_steps))
    file = save({name: t.clone() for name, t in named_state(first, names_of(straight)).items()})

    resumed = make_parameters()
    for name, parameter in straight.items():
        resumed[name].data.copy_(parameter.data)
    second = make(list(reversed(resumed.values())))
    load_named_state(second, names_of(resumed), load(file))

    train(straight, first, range(num_steps, 8))
    train(resumed, second, range(num_steps, 8))
    for name in straight:
        assert torch.equal(straight[name], resumed[name])
    before, after = named_state(first, names_of(straight)), named_state(second, names_of(resumed))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name


def test_names_are_what_a_checkpoint_shows() -> None:
    parameters = make_parameters()
    optimizer = row_optimizer(list(parameters.values()), OptimConfig(rows="adagrad"))
    assert set(named_state(optimizer, names_of(parameters))) == {"table/sum", "head.bias/sum"}
    optimizer = row_optimizer(list(parameters.values()), OptimConfig(rows="sgd"))
    assert set(named_state(optimizer, names_of(parameters))) == {"table/none", "head.bias/none"}


def test_a_loaded_state_is_a_copy() -> None:
    parameters = make_parameters()
    optimizer = row_optimizer(list(parameters.values()), OptimConfig(rows="adagrad"))
    saved = {name: t.clone() for name, t in named_state(optimizer, names_of(parameters)).items()}
    load_named_state(optimizer, names_of(parameters), saved)
    train(parameters, optimizer, range(1))
    assert torch.equal(saved["table/sum"], torch.zeros(5))


@pytest.mark.parametrize("make", [case for case in BUILT if "sgd" not in str(case.id)])
def test_a_missing_entry_is_named(make: Make) -> None:
    parameters = make_parameters()
    optimizer = make(list(parameters.values()))
    train(parameters, optimizer, range(1))
    saved = named_state(optimizer, names_of(parameters))
    lost = next(key for key in saved if key.startswith("head.bias/"))
    fresh = make(list(parameters.values()))
    rest = {key: tensor for key, tensor in saved.items() if key != lost}
    with pytest.raises(UserError, match=rf"head\.bias lacks {lost.rpartition('/')[2]}, which"):
        load_named_state(fresh, names_of(parameters), rest)
    with pytest.raises(UserError, match=r"saved state of table lacks .* it holds nothing"):
        load_named_state(fresh, names_of(parameters), {})


def test_a_wrong_shape_is_named_with_both_and_nothing_changes() -> None:
    parameters = make_parameters()
    optimizer = dense_optimizer(list(parameters.values()), OptimConfig(kind="adam"))
    train(parameters, optimizer, range(1))
    saved = {name: t.clone() for name, t in named_state(optimizer, names_of(parameters)).items()}
    before = {name: tensor.clone() for name, tensor in saved.items()}
    saved["table/exp_avg"] += 1
    saved["head.bias/exp_avg"] = torch.zeros(6)
    sentence = r"head\.bias/exp_avg is float32 \[6\], and Adam needs float32 \[5\]"
    for target in (optimizer, dense_optimizer(list(parameters.values()), OptimConfig(kind="adam"))):
        with pytest.raises(UserError, match=sentence):
            load_named_state(target, names_of(parameters), saved)
    for name, tensor in named_state(optimizer, names_of(parameters)).items():
        assert torch.equal(tensor, before[name])


def test_the_state_of_another_optimiser_is_refused() -> None:
    parameters = make_parameters()
    adagrad = row_optimizer(list(parameters.values()), OptimConfig(rows="adagrad"))
    full = row_optimizer(list(parameters.values()), OptimConfig(rows="adagrad_full"))
    sgd = row_optimizer(list(parameters.values()), OptimConfig(rows="sgd"))
    names = names_of(parameters)
    with pytest.raises(UserError, match=r"table/sum is float32 \[5\], .* needs float32 \[5, 4\]"):
        load_named_state(full, names, named_state(adagrad, names))
    with pytest.raises(UserError, match="lacks sum, which RowAdagrad needs; it holds none"):
        load_named_state(adagrad, names, named_state(sgd, names))
    with pytest.raises(UserError, match="holds sum, which RowSGD does not know"):
        load_named_state(sgd, names, named_state(adagrad, names))
