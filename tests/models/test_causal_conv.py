"""Causal convolutions: what a position sees, and that no cut between batches changes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from thinwire.models.causal_conv import CausalConv
from thinwire.models.contract import State, reset_streams
from thinwire.models.dropout import DropoutMasks
from thinwire.seeds import torch_generator

R, E, D = 11, 5, 8
FIRST_KERNEL, KERNEL, DILATION, LAYERS = 4, 3, 2, 2
# The first convolution, then those at distances 2 and 4.
FIELD = FIRST_KERNEL + 2 * (DILATION + DILATION**2)
WINDOW = 6
BOTH = pytest.mark.parametrize("window", [0, WINDOW], ids=["convolutions", "attention"])


def body(window: int = WINDOW) -> CausalConv:
    """Parameters far from their start, where attention has no effect."""
    made = CausalConv(
        E,
        D,
        layers=LAYERS,
        first_kernel=FIRST_KERNEL,
        kernel=KERNEL,
        dilation=DILATION,
        window=window,
        heads=2,
    )
    generator = torch_generator(0, "test")
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.7, generator=generator)
    return made


def words(B: int, T: int, seed: int = 1) -> Tensor:
    return torch.randint(0, R, (B, T), generator=torch_generator(seed, "words"))


def run(made: CausalConv, ids_BT: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    rows_RE = torch.randn(R, E, generator=torch_generator(2, "rows")).to(made.read_bias)
    hidden, after = made(made.embed(rows_RE, ids_BT), state, None)
    return hidden, after


def reference(made: CausalConv, ids_BT: Tensor) -> Tensor:
    """The same by PyTorch's convolutions and attention written out, position by position."""
    rows_RE = torch.randn(R, E, generator=torch_generator(2, "rows")).to(made.read_bias)
    x = F.embedding(ids_BT, rows_RE).transpose(1, 2)
    # read.weight holds the taps by how long ago a token was; a convolution's last tap is the newest
    weight = made.read.weight.view(FIRST_KERNEL, 2 * D, E).flip(0).permute(1, 2, 0)
    x = F.glu(F.conv1d(F.pad(x, (FIRST_KERNEL - 1, 0)), weight, made.read_bias), dim=1)
    for layer, dilation in zip(made.layers, (DILATION, DILATION**2), strict=True):
        weight = layer.convolve.weight.view(2 * D, KERNEL, D).transpose(1, 2)
        padded = F.pad(x, ((KERNEL - 1) * dilation, 0))
        h, gate = F.conv1d(padded, weight, layer.convolve.bias, dilation=dilation).chunk(2, 1)
        x = gate.sigmoid() * h.tanh() + (1 - gate.sigmoid()) * x
    x = x.transpose(1, 2)
    if made.attention is None:
        return x
    attention, out, C = made.attention, x.clone(), D // 4
    q, k, v = (part.unflatten(2, (2, C)) for part in attention.query_key_value(x).chunk(3, 2))
    for t in range(x.shape[1]):
        mixed = []
        for head, slope in enumerate((2.0**-4, 2.0**-8)):
            seen = range(max(0, t - WINDOW + 1), t + 1)
            scores = [(q[:, t, head] * k[:, s, head]).sum(1) / C**0.5 for s in seen]
            scores = [score - slope * (t - s) for s, score in zip(seen, scores, strict=True)]
            p = torch.stack(scores, 1).softmax(1)
            mixed.append((p[:, :, None] * v[:, seen.start : t + 1, head]).sum(1))
        out[:, t] += attention.out(torch.cat(mixed, 1))
    return out


@BOTH
@pytest.mark.parametrize("T", [1, 5, 20])
def test_equals_torch(window: int, T: int) -> None:
    made, ids_BT = body(window).double(), words(3, T)
    found, expected = run(made, ids_BT)[0], reference(made, ids_BT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    parameters = list(made.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@BOTH
@pytest.mark.parametrize("chunk", [1, 2, 7, 13])
def test_no_cut_changes_anything(window: int, chunk: int) -> None:
    """A token at a time is generation; the state is a stream's alone."""
    made, ids_BT = body(window), words(3, 30)
    whole, end = run(made, ids_BT)
    state, pieces = None, []
    for ids in ids_BT.split(chunk, dim=1):
        hidden, state = run(made, ids, state)
        pieces.append(hidden)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-5)
    assert all(len(s) == 3 for s in end)


@BOTH
def test_a_token_changes_what_follows_and_nothing_before(window: int) -> None:
    made, ids_BT = body(window), words(2, 30)
    changed_BT = ids_BT.clone()
    changed_BT[:, 5] = (ids_BT[:, 5] + 1) % R
    changes_T = (run(made, changed_BT)[0] - run(made, ids_BT)[0]).abs().amax((0, 2))
    reach = FIELD + max(0, window - 1)
    assert not changes_T[:5].any()
    assert (changes_T[5 : 5 + FIELD] > 0).all() and changes_T[5] > 1e-3
    assert not changes_T[5 + reach :].any()
    assert changes_T[5 + FIELD : 5 + reach].any() == bool(window)


def test_restarted_streams_begin_afresh_and_others_go_on() -> None:
    made, ids_BT = body(), words(3, 9)
    _, state = run(made, words(3, 20, seed=3))
    mixed, _ = run(made, ids_BT, reset_streams(state, torch.tensor([False, True, False])))
    torch.testing.assert_close(mixed[1], run(made, ids_BT)[0][1])
    torch.testing.assert_close(mixed[[0, 2]], run(made, ids_BT, state)[0][[0, 2]])


def test_rows_that_no_token_uses_do_not_matter() -> None:
    made, ids_BT = body(), words(1, 3)
    rows_RE = torch.randn(500, E, generator=torch_generator(4, "rows"))
    torch.testing.assert_close(made.embed(rows_RE, ids_BT), made.embed(rows_RE[:R], ids_BT))


def test_starts_without_attention_and_from_the_seed_alone() -> None:
    made, again = body(), body()
    for one in (made, again):
        one.initialise(torch_generator(0, "test"))
    plain = body(window=0)
    plain.load_state_dict({n: p for n, p in made.state_dict().items() if "attention" not in n})
    torch.testing.assert_close(run(made, words(2, 9))[0], run(plain, words(2, 9))[0])
    assert all(
        torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True)
    )


def test_dropout_is_keyed_and_can_be_none() -> None:
    made, rows_RE, ids_BT = body(), torch.randn(R, E), words(2, 9)

    def dropped(rate: float) -> Tensor:
        hidden_BTD, _ = made(made.embed(rows_RE, ids_BT), None, DropoutMasks(rate, 0, 0, 0, 2))
        return hidden_BTD

    assert torch.equal(dropped(0.5), dropped(0.5))
    is_dropped = dropped(0.5) == 0
    assert torch.equal(is_dropped, is_dropped[:, :1].expand_as(is_dropped)) and is_dropped.any()
    assert torch.equal(dropped(0.0), made(made.embed(rows_RE, ids_BT), None, None)[0])
