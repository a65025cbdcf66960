"""The stand-in for a second device has a GPU's manners."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from .standin_device import DEVICE, MixedDevices

here, there = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3).to(DEVICE)
ids_here, ids_there = torch.tensor([1, 0]), torch.tensor([1, 0], device=DEVICE)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda: there + here,
        lambda: here + there,
        lambda: there.clone().add_(here),
        lambda: here.clone().mul_(there),
        lambda: there @ here.t(),
        lambda: torch.cat([here, there]),
        lambda: torch.where(there > 1, there, here),
        lambda: there.index_select(0, ids_here),
        lambda: here.index_select(0, ids_there),
        lambda: there.clone().index_copy_(0, ids_there, here),
        lambda: there.clone().index_add_(0, ids_here, there),
        lambda: there.gather(0, ids_here[:, None]),
        lambda: torch.searchsorted(ids_there, ids_here),
        lambda: nn.functional.embedding(ids_here, there),
        lambda: there.clone().index_put_((ids_there,), here),
        lambda: torch.stack([there[0, 0], here[0, 0]]),
        lambda: torch.add(there, there, out=here.clone()),
        lambda: there.clone().normal_(generator=torch.Generator()),
        lambda: nn.Linear(3, 1)(there),
        lambda: here[ids_there],
    ],
)
def test_refuses_operations_on_both_devices(mixed: Callable[[], Tensor]) -> None:
    with pytest.raises(MixedDevices):
        mixed()


def test_numpy_cannot_read_it() -> None:
    with pytest.raises((TypeError, RuntimeError)):
        there.numpy()


@pytest.mark.parametrize(
    ("allowed", "expected", "device"),
    [
        (lambda: there + torch.tensor(2.0), [[2, 3, 4], [5, 6, 7]], DEVICE),
        (lambda: there * 2, [[0, 2, 4], [6, 8, 10]], DEVICE),
        (lambda: there[ids_here], [[3, 4, 5], [0, 1, 2]], DEVICE),
        (lambda: there.index_select(0, ids_there), [[3, 4, 5], [0, 1, 2]], DEVICE),
        (lambda: torch.empty(2, 3, device=DEVICE).copy_(here), [[0, 1, 2], [3, 4, 5]], DEVICE),
        (lambda: torch.zeros(2, 3).copy_(there), [[0, 1, 2], [3, 4, 5]], torch.device("cpu")),
        (lambda: there.cpu(), [[0, 1, 2], [3, 4, 5]], torch.device("cpu")),
        (lambda: there.to("cpu", torch.int64), [[0, 1, 2], [3, 4, 5]], torch.device("cpu")),
        (lambda: torch.arange(3, device=DEVICE), [0, 1, 2], DEVICE),
        (lambda: torch.full((2,), 0.5, device=DEVICE), [0.5, 0.5], DEVICE),
        (lambda: there.new_zeros(2), [0, 0], DEVICE),
        (lambda: torch.zeros_like(there[0]), [0, 0, 0], DEVICE),
        (lambda: there.new_ones(2, device="cpu"), [1, 1], torch.device("cpu")),
    ],
)
def test_computes_and_copies_across(
    allowed: Callable[[], Tensor], expected: list[object], device: torch.device
) -> None:
    found = allowed()
    assert found.device == device
    assert found.tolist() == expected


def test_a_view_shares_its_memory() -> None:
    whole = torch.zeros(2, 3, device=DEVICE)
    whole[1].add_(1.0)
    whole.view(-1)[0] = 5.0
    assert whole.tolist() == [[5, 0, 0], [1, 1, 1]]


def test_a_module_moves_whole_and_learns_there() -> None:
    module = nn.Linear(3, 1)
    twin = nn.Linear(3, 1)
    twin.load_state_dict(module.state_dict())
    weight = module.weight
    module.to(DEVICE)
    assert module.weight is weight
    assert weight.device == DEVICE
    for one, x in ((module, there), (twin, here)):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.1)
        one(x).square().sum().backward()
        optimizer.step()
    assert weight.grad is not None
    assert weight.grad.device == DEVICE
    torch.testing.assert_close(module.weight.detach().cpu(), twin.weight.detach())


def test_an_lstm_there_is_the_one_here() -> None:
    module, twin = nn.LSTM(3, 4), nn.LSTM(3, 4)
    twin.load_state_dict(module.state_dict())
    module.to(DEVICE)
    found, (h, c) = module(there[:, None])
    expected, (h_expected, c_expected) = twin(here[:, None])
    for one, other in ((found, expected), (h, h_expected), (c, c_expected)):
        torch.testing.assert_close(one.detach().cpu(), other.detach())
