"""Own rows: every element of every worker's gradient lands in exactly one place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.exchange.unshared_rows import (
    MergedRows,
    UnsharedRows,
    decode_announcement,
    encode_announcement,
    unshared_rows,
)
from thinwire.touched import Touched
from thinwire.wire.indices import encoded_bytes

torch.set_num_threads(1)

V, D = 30, 3


def int64(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def touched(shared: list[int], own: list[int]) -> Touched:
    """An output, weight and bias, with shared rows first, and an embedding without."""
    ids = int64([*shared, *own])
    rows = {"embedding": int64(sorted(own)), "weight": ids, "bias": ids}
    num_shared = {"weight": len(shared), "bias": len(shared)}
    return Touched(rows, num_shared, (("weight", "bias"),))


def exchanged(steps: list[Touched]) -> list[list[MergedRows]]:
    """For each worker, its groups merged with what all have announced."""
    groups_of = [unshared_rows(step) for step in steps]
    messages = [encode_announcement(groups) for groups in groups_of]
    merged = []
    for groups in groups_of:
        ids_of = [decode_announcement(message, groups) for message in messages]
        merged.append([MergedRows.of(g, [ids[i] for ids in ids_of]) for i, g in enumerate(groups)])
    return merged


def scattered(step: Touched, name: str, gradient: Tensor) -> Tensor:
    """A gradient of touched rows as that of a whole table."""
    ids = step.rows[name]
    whole = torch.zeros(V, *gradient.shape[1:])
    return whole.index_add_(0, ids, gradient) if ids is not None else whole + gradient


def assert_adds_up(steps: list[Touched]) -> None:
    """The merged gradient of every table is the sum of the workers' dense ones, on each worker."""
    generator = torch.Generator().manual_seed(0)
    gradients = [
        {
            # Whole numbers, so that sums are exact in any order.
            name: torch.randint(
                1, 99, (len(ids), D) if name != "bias" else (len(ids),), generator=generator
            ).float()
            for name, ids in step.rows.items()
            if ids is not None
        }
        for step in steps
    ]
    for merged in exchanged(steps):
        for index, group in enumerate(merged):
            for name in group.group.names:
                groups = [unshared_rows(step)[index] for step in steps]
                num_shared = len(group.group.shared_S)
                parts = list(zip(groups, gradients, strict=True))
                own_of = [own.of(gradient[name]) for own, gradient in parts]
                shared = sum((g[name][:num_shared] for g in gradients), torch.zeros(()))
                found = group.sum_by_row(shared, own_of)
                assert len(found) == len(group.ids) == len(group.ids.unique())
                dense = sum(
                    scattered(step, name, gradient[name])
                    for step, gradient in zip(steps, gradients, strict=True)
                )
                whole = torch.zeros_like(dense).index_copy_(0, group.ids, found)
                assert torch.equal(whole, dense)


@given(data=st.data(), num_workers=st.integers(1, 4))
def test_packing_puts_every_element_in_one_place(data: st.DataObject, num_workers: int) -> None:
    all_rows = st.integers(0, V - 1)
    shared = sorted(data.draw(st.sets(all_rows, min_size=1, max_size=V)))
    others = [row for row in range(V) if row not in shared]
    steps = []
    for _ in range(num_workers):
        own = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        steps.append(touched(shared, own))
    assert_adds_up(steps)


@pytest.mark.parametrize(
    "own",
    [
        [[], []],
        [[4], []],
        [[], [9, 4]],
        [[4], [4]],
        [[29, 0, 7], [7, 29, 0]],
        [[*range(3, V)], [*range(3, V)]],
        [[*range(3, V)], []],
    ],
    ids=["none", "one", "of one worker", "the same", "all the same", "every row", "uneven"],
)
def test_edges(own: list[list[int]]) -> None:
    assert_adds_up([touched([0, 1, 2] if 0 not in rows else [1, 2], rows) for rows in own])


def test_a_tied_table_has_own_rows_alone() -> None:
    """Its rows are those of both uses, sorted; the bias has its own ids."""
    steps = []
    for inputs, targets in (([3, 5], [5, 9]), ([0], [9, 29])):
        tied = int64(sorted({*inputs, 1, 2, *targets}))
        steps.append(Touched({"embedding": tied, "bias": int64([1, 2, *targets])}, {"bias": 2}))
    assert_adds_up(steps)
    (embedding, bias) = unshared_rows(steps[0])
    assert embedding.names == ("embedding",) and not len(embedding.shared_S)
    assert bias.shared_S.tolist() == [1, 2] and bias.ids_O.tolist() == [5, 9]


def test_groups_are_tables_with_the_same_ids() -> None:
    step = touched([1, 2], [9, 5])
    embedding, output = unshared_rows(step)
    assert (embedding.names, output.names) == (("embedding",), ("weight", "bias"))
    assert output.shared_S.tolist() == [1, 2]
    assert output.ids_O.tolist() == [5, 9] and output.order_O.tolist() == [1, 0]
    gradient = torch.tensor([[1.0], [2.0], [9.0], [5.0]])
    assert output.of(gradient).tolist() == [[5.0], [9.0]]


def test_tables_of_which_all_is_touched_need_no_ids() -> None:
    step = Touched({"embedding": int64([2]), "weight": None, "bias": None})
    assert [group.names for group in unshared_rows(step)] == [("embedding",)]
    assert not unshared_rows(Touched({"weight": None}))
    assert not len(encode_announcement([]))


def test_an_announcement_has_the_bytes_documented() -> None:
    groups = unshared_rows(touched([1, 2], [9, 5]))
    assert len(encode_announcement(groups)) == 2 * encoded_bytes(2, 4) == 2 * (8 + 8 + 1)


def test_shared_rows_keep_their_order() -> None:
    group = UnsharedRows(("a",), int64([9, 3]), int64([1]), int64([0]))
    merged = MergedRows.of(group, [int64([1]), int64([0, 1])])
    assert merged.ids.tolist() == [9, 3, 0, 1]
    found = merged.sum_by_row(
        torch.tensor([90.0, 30.0]), [torch.tensor([1.0]), torch.tensor([5.0, 2.0])]
    )
    assert found.tolist() == [90.0, 30.0, 5.0, 3.0]
