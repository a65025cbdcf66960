"""Hidden blocks: every row travels in the end, nothing is lost, and all workers choose alike."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.exchange.config import HiddenKind
from thinwire.exchange.hidden import HiddenBlocks, num_selected

torch.set_num_threads(1)

BLOCKS = {"a": torch.zeros(7, 3), "b": torch.zeros(10), "c": torch.zeros(1, 2)}
KINDS: list[HiddenKind] = ["feedback", "largest", "unbiased"]
kinds = pytest.mark.parametrize("kind", KINDS)


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(b.shape, generator=generator) for name, b in BLOCKS.items()}


def step_of(hidden: HiddenBlocks, step: int) -> dict[str, tuple[Tensor, Tensor]]:
    """For each block which rows have travelled, and what; one worker alone."""
    selection, travelled = hidden.select(step), {}
    for name, gradient in gradients(step).items():
        ids = selection[name]
        assert ids is not None
        sent = hidden.compensate(name, gradient, ids)
        hidden.observe(name, ids, sent)
        travelled[name] = (ids, sent)
    return travelled


@kinds
@given(fraction=st.floats(0, 1, exclude_min=True, exclude_max=True), seed=st.integers(0, 9))
def test_so_many_rows_travel(kind: HiddenKind, fraction: float, seed: int) -> None:
    hidden = HiddenBlocks(BLOCKS, fraction, kind, seed)
    for step in range(3):
        for name, (ids, sent) in step_of(hidden, step).items():
            H = len(BLOCKS[name])
            assert len(ids) == num_selected(fraction, H) == ceil(fraction * H) >= 1
            assert sent.shape == (len(ids), *BLOCKS[name].shape[1:])
            assert bool((ids.diff() > 0).all()) and int(ids[0]) >= 0 and int(ids[-1]) < H


@pytest.mark.parametrize("kind", ["feedback", "unbiased"])
@given(fraction=st.floats(0.1, 0.9), seed=st.integers(0, 9))
def test_no_row_waits_longer_than_it_must(kind: HiddenKind, fraction: float, seed: int) -> None:
    hidden = HiddenBlocks(BLOCKS, fraction, kind, seed)
    for name, block in BLOCKS.items():
        H = len(block)
        turns = ceil(H / num_selected(fraction, H))
        for first in (0, 1, 5):
            seen: set[int] = set()
            for step in range(first, first + turns):
                ids = hidden.select(step)[name]
                assert ids is not None
                seen.update(ids.tolist())
            assert seen == set(range(H))


@kinds
def test_a_fraction_of_1_is_everything_as_it_is(kind: HiddenKind) -> None:
    hidden = HiddenBlocks(BLOCKS, 1.0, kind, 0)
    assert hidden.select(3) == dict.fromkeys(BLOCKS)
    gradient = torch.randn(7, 3)
    assert hidden.compensate("a", gradient, None) is gradient
    assert not hidden.residuals and not hidden.shared_state


@kinds
@pytest.mark.parametrize("zero_at_first", [False, True])
def test_every_row_travels_in_the_end(kind: HiddenKind, zero_at_first: bool) -> None:
    """Also where some rows have ever so small gradients, or none at the time they first travel."""
    hidden = HiddenBlocks(BLOCKS, 0.3, kind, 1)
    travelled = {name: set[int]() for name in BLOCKS}
    for step in range(400):
        selection = hidden.select(step)
        for name, gradient in gradients(step).items():
            gradient[0] *= 1e-6
            if zero_at_first and step < 5:
                gradient.zero_()
            ids = selection[name]
            assert ids is not None
            hidden.observe(name, ids, hidden.compensate(name, gradient, ids))
            if step >= 5:
                travelled[name] |= set(ids.tolist())
    assert travelled == {name: set(range(len(block))) for name, block in BLOCKS.items()}


@pytest.mark.parametrize("kind", ["feedback", "largest"])
def test_feedback_loses_nothing(kind: HiddenKind) -> None:
    """What has travelled and what waits is the sum of all gradients, at every step."""
    hidden = HiddenBlocks(BLOCKS, 0.25, kind, 2)
    sent = {name: torch.zeros_like(b) for name, b in BLOCKS.items()}
    total = {name: torch.zeros_like(b) for name, b in BLOCKS.items()}
    for step in range(60):
        travelled = step_of(hidden, step)
        for name, gradient in gradients(step).items():
            ids, rows = travelled[name]
            sent[name].index_add_(0, ids, rows)
            total[name] += gradient
            assert not hidden.residuals[name][ids].any()
            torch.testing.assert_close(sent[name] + hidden.residuals[name], total[name])


@pytest.mark.parametrize("fraction", [0.5, 0.3, 0.01, 0.99])
def test_unbiased_keeps_the_mean(fraction: float) -> None:
    """Over many draws each row arrives as it is, on average, also where the part of the rows is not
    `fraction` to the letter."""
    hidden, n = HiddenBlocks(BLOCKS, fraction, "unbiased", 3), 1000
    for name, block in BLOCKS.items():
        H = len(block)
        p = num_selected(fraction, H) / H
        counts = torch.zeros(H)
        for step in range(n):
            ids = hidden.select(step)[name]
            assert ids is not None
            travelling = hidden.compensate(name, torch.ones_like(block), ids)
            counts.index_add_(0, ids, travelling.reshape(len(ids), -1)[:, 0])
        # A row's weight is 1 / p with probability p: its deviation is sqrt((1 - p) / p).
        assert float((counts / n - 1).abs().max()) <= 5 * ((1 - p) / p / n) ** 0.5 + 1e-5
    assert not hidden.residuals


def test_rows_with_much_to_send_go_first() -> None:
    blocks = {"a": torch.zeros(20, 4)}
    hidden = HiddenBlocks(blocks, 0.25, "largest", 4)
    travelled, scale = torch.zeros(20), torch.ones(20)
    scale[:5] = 10.0
    for step in range(200):
        ids = hidden.select(step)["a"]
        assert ids is not None
        gradient = torch.randn(20, 4, generator=torch.Generator().manual_seed(step))
        hidden.observe("a", ids, hidden.compensate("a", gradient * scale[:, None], ids))
        if step >= 20:
            travelled[ids] += 1
    assert float(travelled[:5].min()) > 2 * float(travelled[5:].max())
    assert float(travelled.min()) > 0


@kinds
def test_all_workers_choose_alike(kind: HiddenKind) -> None:
    """Whatever their own gradients are: what counts is what all have seen."""
    workers = [HiddenBlocks(BLOCKS, 0.4, kind, 5) for _ in range(3)]
    for step in range(40):
        selections = [worker.select(step) for worker in workers]
        for name, block in BLOCKS.items():
            first = selections[0][name]
            assert first is not None
            assert all(torch.equal(first, selection[name]) for selection in selections)
            merged = torch.zeros(len(first), *block.shape[1:])
            for rank, worker in enumerate(workers):
                merged += worker.compensate(name, gradients(step)[name] * (rank + 1), first)
            for worker in workers:
                worker.observe(name, first, merged)


@pytest.mark.parametrize("kind", ["feedback", "unbiased"])
def test_another_seed_draws_others(kind: HiddenKind) -> None:
    draws = [
        [HiddenBlocks(BLOCKS, 0.5, kind, seed).select(step)["b"].tolist() for step in range(8)]
        for seed in (0, 1)
    ]
    assert draws[0] != draws[1] and len(set(map(tuple, draws[0]))) > 1


@kinds
def test_goes_on_from_a_saved_state(kind: HiddenKind) -> None:
    straight = HiddenBlocks(BLOCKS, 0.4, kind, 6)
    for step in range(10):
        step_of(straight, step)
    resumed = HiddenBlocks(BLOCKS, 0.4, kind, 6)
    resumed.load(
        {name: tensor.clone() for name, tensor in straight.residuals.items()},
        {name: tensor.clone() for name, tensor in straight.shared_state.items()},
    )
    for step in range(10, 30):
        one, other = step_of(straight, step), step_of(resumed, step)
        for name in BLOCKS:
            assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))


def test_state_that_is_not_known_starts_afresh() -> None:
    hidden, fresh = (HiddenBlocks(BLOCKS, 0.4, "largest", 7) for _ in range(2))
    hidden.load({name: torch.ones_like(block) for name, block in BLOCKS.items()}, {})
    assert all(torch.equal(hidden.shared_state[name], t) for name, t in fresh.shared_state.items())
    assert all(bool(residual.eq(1).all()) for residual in hidden.residuals.values())
