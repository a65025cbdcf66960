"""The LSTM body is PyTorch's LSTM, its state carried by the caller."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thinwire.models.contract import reset_streams
from thinwire.models.dropout import DropoutMasks
from thinwire.models.lstm import LSTM
from thinwire.seeds import torch_generator

E, D = 5, 6


def body(layers: int = 2) -> LSTM:
    made = LSTM(E, D, layers)
    made.initialise(torch_generator(0, "test"))
    return made


def words(B: int, T: int) -> Tensor:
    return torch.randn(B, T, E, generator=torch_generator(1, "test"))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 7), (4, 1), (4, 7)])
def test_equals_torch(layers: int, B: int, T: int) -> None:
    mine, stock = body(layers), nn.LSTM(E, D, layers, batch_first=True)
    weights = {
        name.replace("_l0", f"_l{index}"): parameter
        for index, layer in enumerate(mine.layers)
        for name, parameter in layer.named_parameters()
    }
    stock.load_state_dict(weights)
    hidden_BTD, state = mine(words(B, T), None, None)
    expected_BTD, (h, c) = stock(words(B, T))
    torch.testing.assert_close(hidden_BTD, expected_BTD)
    torch.testing.assert_close(state, tuple(s for pair in zip(h, c, strict=True) for s in pair))
    torch.testing.assert_close(
        torch.autograd.grad(hidden_BTD.square().sum(), weights.values()),
        torch.autograd.grad(expected_BTD.square().sum(), [stock.get_parameter(n) for n in weights]),
    )


def test_two_halves_equal_one_pass() -> None:
    made, x_BTE = body(), words(3, 8)
    whole, after = made(x_BTE, None, None)
    first, between = made(x_BTE[:, :5], None, None)
    second, end = made(x_BTE[:, 5:], between, None)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(end, after)


def test_restarted_streams_begin_afresh_and_others_go_on() -> None:
    made, x_BTE = body(), words(3, 4)
    _, state = made(words(3, 2), None, None)
    fresh = torch.tensor([False, True, False])
    mixed, _ = made(x_BTE, reset_streams(state, fresh), None)
    torch.testing.assert_close(mixed[1], made(x_BTE, None, None)[0][1])
    torch.testing.assert_close(mixed[[0, 2]], made(x_BTE, state, None)[0][[0, 2]])


def test_state_is_by_stream_first() -> None:
    _, state = body()(words(3, 2), None, None)
    assert [list(s.shape) for s in state] == [[3, D]] * 4


def test_starts_with_open_forget_gates_and_from_the_seed_alone() -> None:
    made = body()
    for layer in made.layers:
        assert isinstance(layer, nn.LSTM)
        assert layer.bias_ih_l0.tolist() == [0.0] * D + [1.0] * D + [0.0] * 2 * D
        assert not layer.bias_hh_l0.any()
        assert layer.weight_hh_l0.abs().max() <= D**-0.5
    again = body()
    assert all(
        torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True)
    )


def test_dropout_before_between_and_after_the_layers() -> None:
    """Each mask drops the same units at every token; the last one shows in the output."""
    made, x_BTE = body(2), words(2, 9)
    dropped, _ = made(x_BTE, None, DropoutMasks(0.5, 0, 0, 0, 2))
    assert torch.equal(dropped, made(x_BTE, None, DropoutMasks(0.5, 0, 0, 0, 2))[0])
    is_dropped = dropped == 0
    assert is_dropped.any() and not is_dropped.all()
    assert torch.equal(is_dropped, is_dropped[:, :1].expand_as(is_dropped))
    none, _ = made(x_BTE, None, DropoutMasks(0.0, 0, 0, 0, 2))
    assert torch.equal(none, made(x_BTE, None, None)[0])
