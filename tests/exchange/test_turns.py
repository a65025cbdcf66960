"""Every row has its turn, as often as it was said, and no row has two at once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from thinwire.errors import UserError
from thinwire.exchange.config import ExchangeConfig
from thinwire.exchange.turns import Fragment, Turns

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("fragments", "local_steps", "row_steps"), [(1, 1, 1), (4, 4, 4), (2, 4, 12), (3, 7, 14)]
)
def test_every_row_has_one_turn_in_its_interval(
    fragments: int, local_steps: int, row_steps: int
) -> None:
    turns = Turns(fragments, local_steps, row_steps)
    V, H = 23, 10
    rows: Counter[int] = Counter()
    blocks: Counter[int] = Counter()
    # From any step on, as after a resume.
    for step in range(row_steps + 3, 2 * row_steps + 3):
        turn = turns.after(step)
        if turn is not None:
            rows.update(turn.rows.ids(V, CPU).tolist())
            blocks.update(turn.blocks.ids(H, CPU).tolist())
    assert rows == Counter(range(V))
    assert blocks == Counter({row: row_steps // local_steps for row in range(H)})


def test_all_turns_hold_every_row_once() -> None:
    for name in ("rows", "blocks"):
        found = [getattr(turn, name).ids(9, CPU) for turn in Turns(4, 4, 16).all()]
        assert sorted(torch.cat(found).tolist()) == list(range(9))


def test_a_fragment_knows_its_rows() -> None:
    fragment = Fragment(1, 3)
    assert fragment.ids(8, CPU).tolist() == [1, 4, 7]
    assert fragment.num_rows(8) == 3
    mask_V = torch.tensor([1, 0, 1, 1, 1, 1, 1, 1]).bool()
    assert fragment.ids_where(mask_V).tolist() == [4, 7]
    assert fragment.positions(torch.tensor([4, 7])).tolist() == [1, 2]
    empty = Fragment(5, 7)
    assert empty.num_rows(2) == 0
    assert empty.ids(2, CPU).tolist() == []
    assert empty.ids_where(torch.ones(2, dtype=torch.bool)).tolist() == []


def test_rows_take_turns_over_whole_intervals_of_blocks() -> None:
    assert Turns.of(ExchangeConfig(local_steps=6, row_steps=12)) == Turns(4, 6, 12)
    assert Turns.of(ExchangeConfig(local_steps=6)) == Turns(4, 6, 6)
    with pytest.raises(UserError, match="row_steps is 6, and must be a multiple"):
        ExchangeConfig(row_steps=6)
    with pytest.raises(UserError, match="row_steps is -4, and must be 0 or more"):
        ExchangeConfig(row_steps=-4)
