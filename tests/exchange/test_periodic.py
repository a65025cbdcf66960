"""The periodic exchange: local steps, and agreement on what they changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.errors import UserError
from thinwire.exchange.periodic import Periodic
from thinwire.exchange.sizes import TouchedTables, periodic_bytes, total_bytes
from thinwire.exchange.turns import Fragment
from thinwire.transport.collective import Collective
from thinwire.transport.faulty import Faulty

torch.set_num_threads(1)

Settings = Callable[..., RunConfig]
Together = Callable[..., list[Any]]
ONE = {"local_steps": 1, "fragments": 1}


def settings(**exchange: Any) -> dict[str, Any]:
    return {"exchange": {"kind": "periodic", "local_steps": 4, "fragments": 2} | exchange}


def change(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: before[name] - after[name] for name in before}


# What is agreed on


def test_a_row_of_one_worker_moves_all_the_way_and_others_by_the_mean(
    small: Any, together: Together
) -> None:
    """Row 1 is worker 0's, 7 worker 1's, 5 of both; the blocks are of all."""

    def work(member: Collective) -> dict[str, Tensor]:
        mine = small(Periodic, member, **ONE)
        before = mine.parameters()
        inputs = [1, 5] if member.rank == 0 else [5, 7]
        mine.step(mine.touched(inputs, [0, 2], [3]), scale=1.0 + 2 * member.rank)
        mine.exchange.flush()
        return change(before, mine.parameters())

    for moved in together(2, work):
        expected = torch.zeros(12)
        expected[1], expected[5], expected[7] = 1.0, 2.0, 3.0
        torch.testing.assert_close(moved["embedding"], expected[:, None].expand(12, 2))
        torch.testing.assert_close(moved["bias"][[0, 2, 3]], torch.full((3,), 2.0))
        torch.testing.assert_close(moved["block"], torch.full((6, 2), 2.0))


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize(
    ("size", "interval"),
    [(2, (1, 1, 0, 0)), (3, (4, 1, 8, 1)), (2, (4, 4, 0, 0)), (3, (7, 3, 14, 1))],
    ids=str,
)
def test_settling_makes_all_copies_equal(
    codec: str,
    size: int,
    interval: tuple[int, int, int, int],
    toy_data: Path,
    tiny: Settings,
    trained: Any,
    together: Together,
) -> None:
    """To the bit: `trained` flushes, and compares hashes of all parameters."""
    local_steps, fragments, row_steps, overlap_steps = interval
    exchange = {"local_steps": local_steps, "fragments": fragments}
    exchange |= {"row_steps": row_steps, "overlap_steps": overlap_steps}
    config = tiny(**settings(codec=codec, **exchange))
    for steps in (1, 9):
        found = together(size, partial(trained, toy_data, config, steps))
        assert found[0].trainer.exchange.traffic().bytes_sent > 0


@pytest.mark.parametrize(
    ("case", "momentum"),
    [("lstm", 0.0), ("lstm", 0.6), ("tied", 0.6), ("full", 0.6), ("adaptive", 0.0)],
)
def test_everything_updates_what_rows_do(
    case: str,
    momentum: float,
    toy_data: Path,
    tiny: Settings,
    trained: Any,
    together: Together,
) -> None:
    more = {
        "lstm": {},
        "tied": {"model": {"tied": True}},
        "full": {"loss": {"kind": "full"}},
        "adaptive": {"loss": {"kind": "adaptive"}, "model": {"width": 64}},
    }[case]
    rows, everything = (
        together(
            2,
            partial(
                trained,
                toy_data,
                tiny(**settings(select=select, outer_momentum=momentum), **more),
                9,
            ),
        )
        for select in ("rows", "everything")
    )
    assert rows[0].losses == everything[0].losses
    for name, parameter in rows[0].parameters.items():
        assert torch.equal(parameter, everything[0].parameters[name]), name
    if case != "full":
        assert rows[0].sent[-1] < everything[0].sent[-1]


@pytest.mark.parametrize("ngrams", [0, 3])
def test_near_one_worker_with_the_whole_batch(
    ngrams: int, toy_data: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    """It is not the same, but learns as well."""
    sizes = {
        "optim": {"lr": 0.01, "row_lr": 0.3},
        "model": {"width": 16, "ngrams": ngrams, "ngram_rows": 999},
    }
    one = trained(toy_data, tiny(data={"batch": 8}, **sizes), 60)
    two = together(2, partial(trained, toy_data, tiny(**sizes, **settings()), 60))
    mean_of_last = [sum(found.losses[-10:]) / 10 for found in (one, two[0])]
    assert mean_of_last[0] < one.losses[0] - 1.0
    assert mean_of_last[1] < one.losses[0] - 1.0


def test_the_same_on_gloo(toy_data: Path, tiny: Settings, trained: Any, together: Together) -> None:
    for codec in ("fp32", "int8"):
        config = tiny(**settings(codec=codec))
        threads, gloo = (
            together(2, partial(trained, toy_data, config, 9), transport=transport)
            for transport in ("in process", "gloo")
        )
        assert threads[0].losses == pytest.approx(gloo[0].losses, rel=1e-3)
        assert [found.sent for found in threads] == [found.sent for found in gloo]


# When


@pytest.mark.parametrize("interval", [(1, 1), (4, 1), (4, 2), (4, 4), (5, 3), (16, 4)], ids=str)
def test_fragments_take_turns_over_the_interval(
    interval: tuple[int, int], small: Any, together: Together
) -> None:
    local_steps, fragments = interval

    def work(member: Collective) -> list[bool]:
        mine = small(Periodic, member, local_steps=local_steps, fragments=fragments)
        sent, before = [], 0
        for _ in range(3 * local_steps):
            mine.step(mine.touched([1], [2], []))
            sent.append(member.meter.sent > before)
            before = member.meter.sent
        return sent

    for sent in together(2, work):
        one, two, three = (sent[i * local_steps :][:local_steps] for i in range(3))
        assert one == two == three and sum(one) == fragments and one[-1]
        turns = [step for step, sends in enumerate(one) if sends]
        gaps = [b - a for a, b in zip([-1, *turns], turns, strict=False)]
        assert max(gaps) - min(gaps) <= 1


def test_workers_speak_only_in_steps_that_end_with_a_turn(
    toy_data: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    """Elsewhere a small message would wait behind the large one that is on its way."""
    config = tiny(**settings(local_steps=6, fragments=2))
    for found in together(2, partial(trained, toy_data, config, 12)):
        sends = [b > a for a, b in pairwise([found.sent[0], *found.sent])]
        assert sends == [step % 3 == 0 for step in range(1, 13)]


def test_every_row_and_block_belongs_to_one_fragment(small: Any, together: Together) -> None:
    """After an interval and one more turn all that changed has been agreed on, once."""

    def work(member: Collective) -> dict[str, Tensor]:
        mine = small(Periodic, member, local_steps=5, fragments=5)
        before = mine.parameters()
        everything = list(range(12))
        mine.step(mine.touched(everything, everything, []))
        for _ in range(4):
            mine.step(mine.touched([], [], []), scale=0.0)
        mine.exchange._finish_turn()
        return change(before, mine.parameters())

    for moved in together(2, work):
        for name, difference in moved.items():
            torch.testing.assert_close(difference, torch.ones_like(difference), msg=name)


def test_local_progress_is_kept_when_catching_up(small: Any, together: Together) -> None:
    """Agreement on a turn comes a turn later, on top of what was learnt since."""

    def work(member: Collective) -> list[float]:
        mine = small(Periodic, member, **ONE)
        value, seen = mine.tables["embedding"].detach(), []
        before = float(value[1, 0])
        for scale in (1.0, 10.0, 0.0, 0.0):
            rows = [1] if scale else []
            own = scale * (1 + member.rank)
            mine.step(mine.touched(rows, [], []), scale=own)
            seen.append(before - float(value[1, 0]))
        return seen

    # Worker 0 moves by 1, then 10; worker 1 by 2, then 20. The mean of the first steps, 1.5, comes
    # with the second; that of the second, 15, with the third.
    one, other = together(2, work)
    assert one == pytest.approx([1.0, 1.5 + 10, 1.5 + 15, 1.5 + 15])
    assert other == pytest.approx([2.0, 1.5 + 20, 1.5 + 15, 1.5 + 15])


def steps_of_a_row(
    small: Any, member: Collective, scales: Sequence[float], **exchange: int
) -> list[list[float]]:
    """How far row 1 of the embedding and row 1 of a block are from where they were, step by step.

    Worker 0 moves both by a scale, worker 1 by twice as much.
    """
    mine = small(Periodic, member, **exchange)
    row, block = mine.tables["embedding"].detach(), mine.blocks["block"].detach()
    before, seen = (float(row[1, 0]), float(block[1, 0])), []
    for scale in scales:
        mine.step(mine.touched([1], [], []), scale=scale * (1 + member.rank))
        seen.append([before[0] - float(row[1, 0]), before[1] - float(block[1, 0])])
    return seen


def test_what_was_sent_is_applied_so_many_steps_later(small: Any, together: Together) -> None:
    """And at the next turn, where that is sooner."""
    scales = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    for overlap, applied_after in ((1, 4), (2, 5), (0, 6), (9, 6)):
        turns = {"local_steps": 3, "fragments": 1, "overlap_steps": overlap}
        one, other = together(2, lambda m, turns=turns: steps_of_a_row(small, m, scales, **turns))
        for seen, alone in ((one, 1.0), (other, 2.0)):
            waiting = [alone] * (applied_after - 1)
            assert [row for row, _ in seen] == waiting + [1.5] * (6 - len(waiting))


def test_rows_may_be_exchanged_less_often_than_blocks(small: Any, together: Together) -> None:
    """Blocks go after steps 2, 4, 6 and 8; row 1, the second of two fragments, after 4 and 8."""
    scales = [1.0, *[0.0] * 9]
    turns = {"local_steps": 2, "fragments": 1, "row_steps": 4, "overlap_steps": 1}
    one, other = together(2, lambda member: steps_of_a_row(small, member, scales, **turns))
    for seen, alone in ((one, 1.0), (other, 2.0)):
        assert [block for _, block in seen] == [alone] * 2 + [1.5] * 8
        assert [row for row, _ in seen] == [alone] * 4 + [1.5] * 6


def test_rows_changed_after_they_were_sent_are_sent_again(small: Any, together: Together) -> None:
    def work(member: Collective) -> dict[str, Tensor]:
        mine = small(Periodic, member, local_steps=3, fragments=1)
        before = mine.parameters()
        for step in range(8):  # sent after 3 and 6; 7 and 8 are left to the settling
            rows = [1] if member.rank == 0 else [7]
            mine.step(mine.touched(rows, [2], []), scale=float(step + 1))
        mine.exchange.flush()
        return change(before, mine.parameters())

    for moved in together(2, work):
        total = float(sum(range(1, 9)))
        for row, expected in ((1, total), (7, total), (5, 0.0)):
            torch.testing.assert_close(moved["embedding"][row], torch.full((2,), expected))
        torch.testing.assert_close(moved["weight"][2], torch.full((2,), total))
        torch.testing.assert_close(moved["block"], torch.full((6, 2), total))


def test_only_rows_that_changed_are_sent(small: Any, together: Together) -> None:
    def work(member: Collective) -> list[int]:
        mine = small(Periodic, member, **ONE)
        sent = [0]
        for rows in ([1, 2, 3], [3], []):
            mine.step(mine.touched(rows, [], []))
            sent.append(member.meter.sent)
        return [b - a for a, b in pairwise(sent)]

    (three, one, none), _ = together(2, work)
    assert three - one == 2 * (2 * 4 + 1) and one - none == 2 * 4 + 8


# The outer step


def test_the_outer_step_is_nesterovs(small: Any, together: Together) -> None:
    lr, mu = 0.7, 0.9

    def work(member: Collective) -> list[float]:
        mine = small(Periodic, member, lr=0.5, outer_lr=lr, outer_momentum=mu, **ONE)
        seen = []
        for step in range(4):
            mine.step(mine.touched([1], [2], []), scale=1.0 + member.rank + step)
            mine.exchange.flush()
            seen.append(float(mine.parameters()["embedding"][1, 0]))
        return seen

    # The settling sends the row no second time, for it has not changed since.
    everyone = together(2, work)
    assert everyone[0] == everyone[1]
    row, momentum = 2 / 64, 0.0
    for step, found in enumerate(everyone[0]):
        mean = 0.5 * (1.5 + step)
        momentum = mu * momentum + mean
        row -= lr * (mean + mu * momentum)
        assert found == pytest.approx(row)


def test_without_momentum_and_at_rate_1_it_is_the_mean(small: Any, together: Together) -> None:
    def work(member: Collective) -> Tensor:
        mine = small(Periodic, member, **ONE)
        for step in range(3):
            mine.step(mine.touched([1], [], []), scale=1.0 + member.rank + step)
        mine.exchange.flush()
        return mine.blocks["block"].detach().clone()

    expected = torch.arange(12).view(6, 2) / 32 - (1.5 + 2.5 + 3.5)
    for found in together(2, work):
        torch.testing.assert_close(found, expected)


def test_of_blocks_that_adam_normalised_the_mean_counts_more(
    small: Any, together: Together
) -> None:
    """Adam's first step is as long as its rate, whatever the gradient."""

    def work(member: Collective) -> Tensor:
        mine = small(Periodic, member, lr=0.01, dense=torch.optim.Adam, **ONE)
        before = mine.parameters()
        mine.step(mine.touched([1], [], []), scale=1.0 + member.rank)
        mine.exchange.flush()
        return change(before, mine.parameters())["block"]

    for moved in together(4, work):
        torch.testing.assert_close(moved, torch.full((6, 2), 4**0.5 * 0.01), rtol=1e-4, atol=0)


def test_settling_twice_is_settling_once(small: Any, together: Together) -> None:
    """A momentum must not run on between an evaluation and the save that follows it."""

    def work(member: Collective) -> tuple[bool, int]:
        mine = small(Periodic, member, outer_momentum=0.9, **ONE)
        mine.exchange.flush()
        assert member.meter.sent == 0  # nothing has been done yet
        mine.step(mine.touched([1], [2], []))
        mine.exchange.flush()
        before, sent = mine.parameters(), member.meter.sent
        mine.exchange.flush()
        after = mine.parameters()
        same = all(torch.equal(before[name], after[name]) for name in before)
        return same, member.meter.sent - sent

    assert together(2, work) == [(True, 0)] * 2


# Going on


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_goes_on_from_a_saved_state(
    momentum: float, codec: str, small: Any, together: Together
) -> None:
    """Where a run has flushed, it may stop and go on."""

    def steps(mine: Any, numbers: range) -> None:
        for step in numbers:
            rows = [step % 12, 5] if step % 12 != 5 else [5]
            mine.step(mine.touched(sorted(rows), [2], []), scale=0.1 * (1 + mine.member.rank))

    def work(member: Collective) -> list[dict[str, Tensor]]:
        options = {"local_steps": 4, "fragments": 2, "outer_momentum": momentum, "codec": codec}
        straight = small(Periodic, member, **options)
        steps(straight, range(6))
        straight.exchange.flush()
        resumed = small(Periodic, member, **options)
        for name, value in straight.parameters().items():
            {**resumed.tables, **resumed.blocks}[name].data.copy_(value)
        state = straight.exchange.state()
        assert set(state.shared) == (set(straight.parameters()) if momentum else set())
        resumed.exchange.load_state(6, state)
        for mine in (straight, resumed):
            steps(mine, range(6, 17))
            mine.exchange.flush()
        return [straight.parameters(), resumed.parameters()]

    for straight, resumed in together(2, work):
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)


# Bytes


def test_the_bytes_of_a_turn_written_out(small: Any, together: Together) -> None:
    """Two workers and two fragments. After two steps rows 0, 2, 4, ... of tables and blocks
    have been sent, after four the others. Worker 0 has changed 2, 4, 5 of the embedding and 1, 6
    of the output; worker 1 row 4 and none, but all of them count once."""

    def work(member: Collective, codec: str, select: str) -> list[int]:
        mine = small(Periodic, member, local_steps=4, fragments=2, codec=codec, select=select)
        inputs, own = ([2, 4, 5], [1, 6]) if member.rank == 0 else ([4], [])
        sent = []
        for _ in range(4):
            mine.step(mine.touched(inputs, [], own))
            sent.append(member.meter.sent)
        return [sent[1], sent[3] - sent[1]]

    # Ids of rows 2, 4 and 6; then of 5 and 1.
    ids = [[8 + (8 + 8 + 1) + (8 + 8), 8 + (8 + 8) + 8], [8 + (8 + 8) + (8 + 8), 8 + 8 + 8]]
    for codec, num_bytes in (("fp32", 4), ("bf16", 2)):
        rows = [[2 * 2 + 1 * 3, 1 * 2], [1 * 2 + 1 * 3, 0]]
        blocks = [3 * 2 + 2, 3 * 2 + 1]
        found = together(2, partial(work, codec=codec, select="rows"))
        for rank in (0, 1):
            assert found[rank] == [
                ids[turn][rank] + num_bytes * (rows[turn][rank] + blocks[turn]) for turn in (0, 1)
            ]
        found = together(2, partial(work, codec=codec, select="everything"))
        for rank in (0, 1):
            assert found[rank] == [
                ids[turn][rank] + num_bytes * (6 * (2 + 2 + 1) + blocks[turn]) for turn in (0, 1)
            ]
    found = together(2, partial(work, codec="int8", select="rows"))
    rows = [[2 * 6 + 1 * 6 + 5, 6], [6 + 6 + 5, 0]]
    # A part for the other worker, and the sums of the own one: one of a single number has none.
    blocks = [6 + 5 + 2 * 6 + 5, 6 + 2 * 6 + 5]
    for rank in (0, 1):
        assert found[rank] == [ids[turn][rank] + rows[turn][rank] + blocks[turn] for turn in (0, 1)]


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("select", ["rows", "everything"])
@pytest.mark.parametrize("tied", [False, True])
def test_bytes_equal_the_formula(
    codec: str,
    select: str,
    tied: bool,
    toy_data: Path,
    tiny: Settings,
    trained: Any,
    together: Together,
) -> None:
    """From which rows a worker has touched since their last turn, alone."""
    W, H, F = 3, 6, 3
    exchange = settings(codec=codec, select=select, local_steps=H, fragments=F)
    config = tiny(model={"tied": tied}, **exchange)
    for rank, found in enumerate(together(W, partial(trained, toy_data, config, 2 * H))):
        tables, blocks = found.trainer.run.tables, list(found.trainer.run.blocks.values())
        changed: dict[tuple[str, ...], set[int]] = {}
        expected = 0
        for step, (touched, sent) in enumerate(
            zip(found.announced, found.sent, strict=False), start=1
        ):
            names: dict[int, list[str]] = {}
            for name, ids in touched.rows.items():
                names.setdefault(id(ids), []).append(name)
            for group in map(tuple, names.values()):
                ids = touched.rows[group[0]]
                assert ids is not None
                changed.setdefault(group, set()).update(ids.tolist())
            if step % (H // F) == 0:
                expected += total_bytes(W, 10)
                fragment = step // (H // F) % F - 1
                fragment = fragment if fragment >= 0 else F - 1
                travelling = []
                for group, rows in changed.items():
                    own = sorted(row for row in rows if row % F == fragment)
                    rows.difference_update(own)
                    gaps = [b - a for a, b in pairwise(own)]
                    V = len(tables[group[0]])
                    travelling.append(
                        TouchedTables(
                            [tables[name].shape[1:] for name in group],
                            len(range(fragment, V, F)),
                            len(own),
                            max(gaps, default=0),
                        )
                    )
                shapes = Fragment(fragment, F).shapes([block.shape for block in blocks])
                expected += periodic_bytes(
                    W, codec, travelling, shapes, everything=select == "everything", rank=rank
                )
            assert sent == expected


# Faults


@pytest.mark.parametrize("failing", range(14))
def test_a_call_that_fails_ends_every_worker(
    failing: int, toy_data: Path, tiny: Settings, trained: Any, outcomes: Together
) -> None:
    """For each call of four steps, a settling and a comparison."""

    def work(member: Collective) -> Any:
        if member.rank == 1:
            member = Faulty(member, failing)
        return trained(toy_data, tiny(**settings()), 4, member)

    found = outcomes(2, work)
    if failing < 2 + 2 * 2 + 2 * 2 + 1:  # sums of numbers, turns, the settling, the hash
        assert all(isinstance(outcome, UserError) for outcome in found)
        assert str(found[1]) == "worker 1 of 2 has lost the others"
        assert "worker 1 of 2 has left" in str(found[0])
    else:
        assert not any(isinstance(outcome, Exception) for outcome in found)
