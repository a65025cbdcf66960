"""The Transformer sees the past of its window, in its order, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thinwire.models import transformer as module
from thinwire.models.dropout import DropoutMasks
from thinwire.models.transformer import Transformer
from thinwire.seeds import torch_generator

E, D = 8, 8


def body(input_width: int = E) -> Transformer:
    """Parameters far from their start, where attention has no effect."""
    made = Transformer(input_width, D, layers=2, heads=2)
    generator = torch_generator(0, "test")
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.7, generator=generator)
    return made


def words(B: int, T: int, width: int = E) -> Tensor:
    return torch.randn(B, T, width, generator=torch_generator(1, "test"))


def hidden(made: Transformer, x_BTE: Tensor) -> Tensor:
    hidden_BTD, state = made(x_BTE, None, None)
    assert state == ()
    return hidden_BTD


@pytest.mark.parametrize("position", [0, 3, 6])
def test_the_future_does_not_matter_and_the_past_does(position: int) -> None:
    made, x_BTE = body(), words(2, 7)
    changed_BTE = x_BTE.clone()
    changed_BTE[:, position] += 1.0
    before, after = hidden(made, x_BTE), hidden(made, changed_BTE)
    torch.testing.assert_close(after[:, :position], before[:, :position])
    assert ((after - before)[:, position:].abs().amax(2) > 1e-4).all()


def test_streams_do_not_see_each_other() -> None:
    made, x_BTE = body(), words(3, 5)
    torch.testing.assert_close(hidden(made, x_BTE)[1:2], hidden(made, x_BTE[1:2]))


def test_order_matters() -> None:
    made, x_BTE = body(), words(1, 5)
    swapped = x_BTE[:, [1, 0, 2, 3, 4]]
    difference = (hidden(made, x_BTE) - hidden(made, swapped))[0, 4].abs().max()
    assert difference > 1e-4


def test_carries_no_state() -> None:
    assert not Transformer.carries_state


def test_attention_depends_on_distance_alone() -> None:
    """The same query and key at every position: their products are constant along diagonals."""
    T, K = 12, 6
    q_K, k_K = torch.randn(2, K, generator=torch_generator(2, "test"))
    cos_TK, sin_TK = module._rotation(T, K, q_K)
    q_TK, k_TK = (
        module._rotate(x_K.expand(1, 1, T, K), cos_TK, sin_TK)[0, 0] for x_K in (q_K, k_K)
    )
    products_TT = q_TK @ k_TK.T
    for distance in range(-T + 1, T):
        diagonal = products_TT.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert products_TT[0].std() > 0.01  # and they do depend on it
    torch.testing.assert_close(q_TK.norm(dim=1), q_K.norm().expand(T))


def test_positions_turn_at_the_documented_rates() -> None:
    cos_TK, _ = module._rotation(3, 4, torch.zeros(()))
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.01], [2.0, 0.02]])
    torch.testing.assert_close(cos_TK, angles.repeat(1, 2).cos())


def test_embeddings_of_another_width() -> None:
    assert hidden(body(3), words(2, 4, 3)).shape == (2, 4, D)


@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 1), (1, 9)])
def test_small_windows(B: int, T: int) -> None:
    assert hidden(body(), words(B, T)).isfinite().all()


def test_starts_as_the_identity_and_from_the_seed_alone() -> None:
    made, again = (Transformer(E, D, layers=2, heads=2) for _ in range(2))
    for one in (made, again):
        one.initialise(torch_generator(0, "test"))
    x_BTE = words(2, 4)
    torch.testing.assert_close(hidden(made, x_BTE), made.norm(x_BTE))
    assert all(
        torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True)
    )


def test_dropout_is_keyed_and_can_be_none() -> None:
    made, x_BTE = body(), words(2, 4)

    def dropped(rate: float) -> Tensor:
        hidden_BTD, _ = made(x_BTE, None, DropoutMasks(rate, 0, 0, 0, 2))
        return hidden_BTD

    assert torch.equal(dropped(0.5), dropped(0.5))
    assert (dropped(0.5) == 0).any()
    assert torch.equal(dropped(0.0), hidden(made, x_BTE))


def test_hidden_states_start_with_length_one() -> None:
    made = Transformer(32, 64, layers=2, heads=4)
    made.initialise(torch.Generator().manual_seed(0))
    x_BTE = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    hidden_BTD, _ = made(x_BTE, None, None)
    torch.testing.assert_close(hidden_BTD.norm(dim=2), torch.ones(2, 5), rtol=1e-3, atol=0)


@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 1, 3], [1, 6]], ids=str)
def test_read_piece_by_piece_it_is_the_parallel_form(pieces: list[int]) -> None:
    made, x_BTE = body(3), words(2, 7, 3)
    past, read, found = made.empty_cache(2, 9, x_BTE), 0, []
    for T in pieces:
        before = [part.clone() for part in past]
        first_B1 = torch.full((2, 1), read)
        hidden_BTD, after = made.forward_with_cache(x_BTE[:, read : read + T], past, first_B1)
        assert all(torch.equal(part, copy) for part, copy in zip(past, before, strict=True))
        assert all(part.shape[:2] == (2, 2) for part in after)  # streams, then layers
        found.append(hidden_BTD)
        past, read = after, read + T
    torch.testing.assert_close(torch.cat(found, 1), hidden(made, x_BTE))


def test_streams_of_a_window_stand_at_places_of_their_own() -> None:
    """And what a window held beyond its place is not looked at."""
    made, x_BTE = body(), words(2, 6)
    _, past = made.forward_with_cache(
        x_BTE, made.empty_cache(2, 6, x_BTE), torch.zeros(2, 1, dtype=int)
    )
    next_B1E = words(2, 7)[:, 6:]
    hidden_B1D, _ = made.forward_with_cache(next_B1E, past, torch.tensor([[4], [1]]))
    for row, number in enumerate([4, 1]):
        read = torch.cat([x_BTE[row : row + 1, :number], next_B1E[row : row + 1]], 1)
        torch.testing.assert_close(hidden_B1D[row], hidden(made, read)[0, -1:])
