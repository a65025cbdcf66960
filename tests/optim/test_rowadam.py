"""Lazy Adam and AdamW: torch's where every row is touched, the sums written out where not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from thinwire.errors import UserError
from thinwire.optim import RowAdam, load_named_state, named_state


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [(), (3,), (4,)])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_touching_every_row_is_torchs_adam(
    width: tuple[int, ...], by_name: bool, weight_decay: float
) -> None:
    ours, theirs = nn.Parameter(randn(5, *width)), nn.Parameter(randn(5, *width))
    first = RowAdam([ours], lr=0.05, weight_decay=weight_decay)
    second: torch.optim.Optimizer = (
        torch.optim.AdamW([theirs], lr=0.05, weight_decay=weight_decay)
        if weight_decay
        else torch.optim.Adam([theirs], lr=0.05)
    )
    for step in range(100):
        grad = randn(5, *width, seed=step)
        first.update_rows(ours, torch.arange(5) if by_name else None, grad)
        theirs.grad = grad
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_row_is_moved_by_the_weighted_average_of_its_own_gradients() -> None:
    lr, beta1, beta2, eps, decay = 0.1, 0.8, 0.95, 1e-8, 0.2
    visits = [[0, 1], [1], [], [1, 2], [0], [], [], [0, 1, 2]]
    table = nn.Parameter(randn(4, 3))
    optimizer = RowAdam([table], lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    expected = table.detach().double()
    history: dict[int, list[tuple[int, Tensor]]] = {row: [] for row in range(4)}

    for step, ids in enumerate(visits):
        grad_R = randn(len(ids), 3, seed=step)
        optimizer.update_rows(table, torch.tensor(ids, dtype=torch.int64), grad_R)
        for row, grad in zip(ids, grad_R.double(), strict=True):
            last_step = history[row][-1][0] if history[row] else -1
            history[row].append((step, grad))
            weights1 = [beta1 ** (step - then) for then, _ in history[row]]
            weights2 = [beta2 ** (step - then) for then, _ in history[row]]
            mean = sum(w * g for w, (_, g) in zip(weights1, history[row], strict=True))
            square = sum(w * g**2 for w, (_, g) in zip(weights2, history[row], strict=True))
            mean, square = mean / sum(weights1), square / sum(weights2)
            expected[row] *= (1 - lr * decay) ** (step - last_step)
            expected[row] -= lr * mean / (square.sqrt() + eps)

    torch.testing.assert_close(table.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_a_row_first_touched_late_moves_by_one_rate() -> None:
    table = nn.Parameter(torch.zeros(2, 3))
    optimizer = RowAdam([table], lr=0.1)
    for _ in range(1000):
        optimizer.update_rows(table, torch.tensor([0]), torch.ones(1, 3))
    optimizer.update_rows(table, torch.tensor([1]), torch.full((1, 3), 0.01))
    torch.testing.assert_close(table[1].detach(), torch.full((3,), -0.1))


def test_weight_decay_is_paid_when_next_touched() -> None:
    table = nn.Parameter(torch.ones(2, 4))
    optimizer = RowAdam([table], lr=0.1, weight_decay=0.5)
    for _ in range(9):
        optimizer.update_rows(table, torch.tensor([0]), torch.zeros(1, 4))
    assert torch.equal(table[1], torch.ones(4))
    optimizer.update_rows(table, None, torch.zeros(2, 4))
    torch.testing.assert_close(table.detach(), torch.full((2, 4), 0.95**10))


def cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def run_of_a_cosine(table: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Row 0 is touched at every step with gradient 0, row 1 at the last one only."""
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * cosine(step, steps)
        rows = torch.tensor([0, 1] if step == steps - 1 else [0])
        table.grad = torch.sparse_coo_tensor(
            rows[None], torch.zeros(len(rows), 4), table.shape, check_invariants=True
        )
        if not isinstance(optimizer, RowAdam):
            table.grad = table.grad.to_dense()
        optimizer.step()


def test_a_row_touched_at_the_end_decays_at_the_rates_of_the_steps_that_it_missed() -> None:
    steps, decay = 1000, 0.02
    table, dense = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(2, 4))
    run_of_a_cosine(table, RowAdam([table], lr=0.05, weight_decay=decay), steps)
    run_of_a_cosine(dense, torch.optim.AdamW([dense], lr=0.05, weight_decay=decay), steps)
    left = math.prod(1 - 0.05 * cosine(step, steps) * decay for step in range(steps))
    assert 0.6 < left < 0.61
    torch.testing.assert_close(table.detach(), torch.full((2, 4), left))
    torch.testing.assert_close(table, dense)


def test_rows_read_and_flushed_have_paid_what_they_owe() -> None:
    table = nn.Parameter(torch.ones(3, 4))
    optimizer = RowAdam([table], lr=0.1, weight_decay=0.5)
    for rate in (0.1, 0.3, 0.05):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.update_rows(table, torch.tensor([0]), torch.zeros(1, 4))
    left = 0.95 * 0.85 * 0.975
    before = table.detach().clone()
    torch.testing.assert_close(optimizer.rows(table), torch.full((3, 4), left))
    torch.testing.assert_close(
        optimizer.rows(table, torch.tensor([2, 0])), torch.full((2, 4), left)
    )
    assert torch.equal(table, before)

    optimizer.flush(table, torch.tensor([2]))
    torch.testing.assert_close(table[:, 0].detach(), torch.tensor([left, 1.0, left]))
    for _ in range(2):  # once more changes nothing
        optimizer.flush()
        torch.testing.assert_close(table.detach(), torch.full((3, 4), left))
    optimizer.update_rows(table, torch.tensor([1]), torch.zeros(1, 4))
    torch.testing.assert_close(table[1].detach(), torch.full((4,), left * 0.975))


def test_only_groups_that_decay_owe() -> None:
    decaying, spared = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(2))
    optimizer = RowAdam([{"params": [decaying], "weight_decay": 0.5}, {"params": [spared]}], lr=0.1)
    for parameter in (decaying, spared):
        optimizer.update_rows(parameter, torch.tensor([0]), torch.zeros(1, *parameter.shape[1:]))
    optimizer.flush()
    torch.testing.assert_close(decaying.detach(), torch.full((2, 4), 0.95))
    assert torch.equal(spared.detach(), torch.ones(2))
    assert optimizer.rows(spared).data_ptr() == spared.data_ptr()


def test_decay_in_bf16_is_not_rounded_away() -> None:
    table = nn.Parameter(torch.ones(2, 4, dtype=torch.bfloat16))
    optimizer = RowAdam([table], lr=1e-3, weight_decay=0.1)
    for _ in range(2000):
        optimizer.update_rows(table, torch.tensor([0]), torch.zeros(1, 4))
    optimizer.flush()
    expected = torch.full((4,), 0.9999**2000)
    torch.testing.assert_close(table[1].detach().float(), expected, rtol=4e-3, atol=0)


def test_decay_that_cannot_be_is_refused() -> None:
    table = nn.Parameter(torch.ones(2, 4))
    optimizer = RowAdam([table], lr=2.0, weight_decay=0.5)
    with pytest.raises(ValueError, match="lr x weight_decay is 1, and must be below 1"):
        optimizer.update_rows(table, None, torch.zeros(2, 4))
    late = RowAdam([table], lr=0.1)
    late.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(ValueError, match="weight_decay was 0 when these parameters were added"):
        late.update_rows(table, None, torch.zeros(2, 4))


def test_what_is_owed_is_saved_and_a_state_without_it_is_refused() -> None:
    def made(weight_decay: float = 0.5) -> tuple[nn.Parameter, RowAdam]:
        table = nn.Parameter(torch.ones(2, 4))
        return table, RowAdam([table], lr=0.1, weight_decay=weight_decay)

    table, optimizer = made()
    optimizer.update_rows(table, torch.tensor([0]), torch.zeros(1, 4))
    other, resumed = made()
    resumed.load_state_dict(optimizer.state_dict())
    resumed.flush()
    torch.testing.assert_close(other[1].detach(), torch.full((4,), 0.95))

    old_table, old = made(weight_decay=0.0)
    saved = old.state_dict()
    saved["param_groups"][0]["weight_decay"] = 0.5
    with pytest.raises(UserError, match="RowAdam lacks decay_paid, decay_sum"):
        made()[1].load_state_dict(saved)
    with pytest.raises(UserError, match="w lacks decay_paid, decay_sum, which RowAdam needs"):
        load_named_state(resumed, {other: "w"}, named_state(old, {old_table: "w"}))
