"""The synchronous exchange: N workers with b streams each are one worker with N b."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.data.batches import NO_TARGET, Batches
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.exchange.sync import Sync
from thinwire.transport.collective import Collective
from thinwire.transport.faulty import Faulty

torch.set_num_threads(1)

Settings = Callable[..., RunConfig]
Together = Callable[..., list[Any]]
SGD = {"kind": "sgd", "rows": "sgd", "lr": 0.2, "row_lr": 0.2, "clip": 0.5}


def assert_near(one: Any, other: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Losses and parameters agree."""
    assert one.losses == pytest.approx(other.losses, rel=rtol)
    for name, parameter in one.parameters.items():
        torch.testing.assert_close(
            parameter,
            other.parameters[name],
            rtol=rtol,
            atol=atol,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def assert_equal(one: Any, other: Any) -> None:
    """They are the same bits."""
    assert one.losses == other.losses
    for name, parameter in one.parameters.items():
        assert torch.equal(parameter, other.parameters[name]), name


# The ladder of equivalence

MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "lstm": {},
    "two layers with dropout": {"model": {"layers": 2, "dropout": 0.3}},
    "transformer": {"model": {"kind": "transformer"}},
    "causal_conv": {"model": {"kind": "causal_conv"}},
    "causal_conv of lines with dropout": {
        "model": {"kind": "causal_conv", "dropout": 0.2, "kernel": 2, "window": 5},
        "data": {"context": "line"},
    },
    "transformer with dropout": {"model": {"kind": "transformer", "dropout": 0.2}},
    "tied": {"model": {"tied": True}},
    "tied full": {"model": {"tied": True}, "loss": {"kind": "full"}},
    "full": {"loss": {"kind": "full"}},
    "nce": {"loss": {"kind": "nce"}, "optim": SGD | {"row_lr": 0.02}},
    "adaptive": {"loss": {"kind": "adaptive"}, "model": {"width": 64}},
    "lines": {"data": {"context": "line"}},
    "n-grams": {"model": {"ngrams": 3, "ngram_rows": 64}},
    "n-grams of lines": {
        "model": {"ngrams": 4, "ngram_rows": 64, "tied": True},
        "data": {"context": "line"},
    },
    "n-grams of a causal_conv": {"model": {"kind": "causal_conv", "ngrams": 3, "ngram_rows": 64}},
    "n-grams of a transformer": {"model": {"kind": "transformer", "ngrams": 2, "ngram_rows": 64}},
    "lines of a tied transformer": {
        "data": {"context": "line"},
        "model": {"kind": "transformer", "tied": True},
    },
}


def sections(case: dict[str, dict[str, Any]], batch: int) -> dict[str, dict[str, Any]]:
    return {"optim": SGD, **case, "data": case.get("data", {}) | {"batch": batch}}


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_two_workers_are_one_with_twice_the_batch(
    case: dict[str, Any], toy_data: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    one = trained(toy_data, tiny(**sections(case, 4)), 6)
    both = together(2, partial(trained, toy_data, tiny(**sections(case, 2)), 6))
    assert_equal(*both)
    assert_near(both[0], one)
    start = trained(toy_data, tiny(**sections(case, 4)), 0)
    moved = [
        name for name, p in one.parameters.items() if not torch.equal(p, start.parameters[name])
    ]
    assert len(moved) >= len(one.parameters) - 2  # it did train


LINES: dict[str, dict[str, dict[str, Any]]] = {
    "sampled": {"loss": {"samples": 5}},
    "full": {"loss": {"kind": "full"}},
    "nce": {"loss": {"kind": "nce", "samples": 5}, "optim": SGD | {"row_lr": 0.02}},
    "adaptive": {"loss": {"kind": "adaptive"}, "model": {"width": 64}},
    "tied": {"model": {"tied": True}, "loss": {"samples": 5}},
}


@pytest.mark.parametrize("case", LINES.values(), ids=LINES)
def test_a_worker_may_have_nothing_to_read(
    case: dict[str, Any], few_lines: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    """At the end of an epoch of lines some streams have ended, and a worker's may all have."""

    def config(batch: int) -> RunConfig:
        data = {"context": "line", "batch": batch, "length": 4}
        return tiny(**{"optim": SGD, **case, "data": data})

    one = trained(few_lines, config(3), 65)
    three = together(3, partial(trained, few_lines, config(1), 65))
    assert one.trainer.batches.epoch > 2
    corpus = Corpus.open(few_lines)
    eos_id = corpus.meta.eos_id
    reader = Batches(corpus.ids("train"), config(3).data, seed=1, eos_id=eos_id)
    targets = [next(reader).targets_BT for _ in range(65)]
    assert any(bool((row == NO_TARGET).all()) for step_BT in targets for row in step_BT)
    assert_equal(three[0], three[1])
    assert_near(three[0], one)
    assert len(three[0].losses) == 65


def test_adam_and_adagrad_follow_too(
    toy_data: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    """Within more than rounding, which they blow up where a gradient is nearly zero."""
    one = trained(toy_data, tiny(data={"batch": 6}), 12)
    three = together(3, partial(trained, toy_data, tiny(data={"batch": 2}), 12))
    assert three[0].losses == pytest.approx(one.losses, rel=1e-3)
    assert_equal(three[0], three[2])


@pytest.mark.parametrize("delay", [1, 3])
def test_a_delay_applies_the_late_gradients_so_many_steps_late(
    delay: int, small: Any, together: Together
) -> None:
    """Rows move by the sum of both workers' gradients, and by nothing before its time."""

    def work(member: Collective) -> list[list[float]]:
        mine = small(Sync, member, delay=delay)
        places = [mine.tables["embedding"].detach()[1], mine.tables["weight"].detach()[4]]
        before, seen = [float(place[0]) for place in places], []
        for step in range(6):
            mine.step(mine.touched([1], [4], []), scale=float(1 + step))
            seen.append([float(place[0]) for place in places])
        mine.exchange.flush()
        seen.append([float(place[0]) for place in places])
        return [[b - row[i] for row in seen] for i, b in enumerate(before)]

    sums = [2.0 * sum(range(1, 1 + steps)) for steps in range(7)]
    late = [*[0.0] * delay, *sums[1 : 7 - delay], sums[6]]
    prompt = [*sums[1:], sums[6]]
    for embedding, weight in together(2, work):
        assert embedding == pytest.approx(late)
        assert weight == pytest.approx(prompt)


@pytest.mark.parametrize(
    ("codec", "fraction"), [("fp32", 1.0), ("int8", 1.0), ("int8", 0.5)], ids=str
)
def test_replicas_stay_the_same_with_a_delay(
    codec: str, fraction: float, toy_data: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    """`trained` compares hashes; and late or not, the same bytes travel."""
    exchange = {"codec": codec, "hidden_fraction": fraction}
    late, prompt = (
        together(2, partial(trained, toy_data, tiny(exchange=exchange | {"delay": delay}), 8))
        for delay in (1, 0)
    )
    assert_equal(*late)
    assert late[0].sent == prompt[0].sent
    assert late[0].losses[0] == prompt[0].losses[0]
    assert late[0].losses[2] != prompt[0].losses[2]
    assert late[0].losses[-1] < late[0].losses[0]


def test_the_clip_is_of_the_merged_gradient(small: Any, together: Together) -> None:
    def work(member: Collective) -> float:
        mine = small(Sync, member)
        mine.updater.clip = 1.0
        return mine.step(mine.touched([member.rank], [4, 5], [6 + member.rank]))

    # 2 x 2 of the embedding, 2 shared rows of 3 numbers with twice the gradient, 2 own ones of 3,
    # and 15 numbers of the blocks with twice the gradient.
    norm = (4 + 6 * 4 + 6 + 15 * 4) ** 0.5
    assert together(2, work) == [pytest.approx(norm)] * 2


@pytest.mark.parametrize(
    ("case", "size"),
    [("lstm", 2), ("lstm", 3), ("tied", 2), ("full", 2), ("adaptive", 2), ("lines", 3)],
)
def test_everything_updates_what_rows_do(
    case: str, size: int, toy_data: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    rows, everything = (
        together(
            size,
            partial(
                trained,
                toy_data,
                tiny(**MODELS[case] | {"exchange": {"select": select}}),
                5,
            ),
        )
        for select in ("rows", "everything")
    )
    if size == 2:
        assert_equal(rows[0], everything[0])
    assert_near(rows[0], everything[0], rtol=1e-3)
    if case not in ("full", "adaptive"):
        assert rows[0].sent[-1] < everything[0].sent[-1]


@pytest.mark.parametrize(
    ("codec", "case"),
    [("bf16", "lstm"), ("int8", "lstm"), ("bf16", "tied"), ("int8", "full"), ("int8", "lines")],
)
def test_replicas_are_identical_and_near_fp32(
    codec: str, case: str, toy_data: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    """`trained` compares hashes of all parameters."""

    def run(codec: str) -> Any:
        config = tiny(**MODELS[case] | {"exchange": {"codec": codec}})
        return together(3, partial(trained, toy_data, config, 12))

    exact, coded = run("fp32"), run(codec)
    assert_equal(exact[0], exact[2])
    assert_equal(coded[0], coded[2])
    assert coded[0].losses == pytest.approx(exact[0].losses, rel=0.02)
    assert coded[0].losses != exact[0].losses
    assert coded[0].sent[-1] < exact[0].sent[-1]


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("case", ["lstm", "tied"])
def test_threads_are_gloo(
    codec: str, case: str, toy_data: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    config = tiny(**MODELS[case] | {"exchange": {"codec": codec}})
    threads, gloo = (
        together(2, partial(trained, toy_data, config, 5), transport=transport)
        for transport in ("in process", "gloo")
    )
    assert_near(threads[0], gloo[0], rtol=1e-5 if codec == "fp32" else 0.02, atol=1e-3)
    for one, other in zip(threads, gloo, strict=True):
        assert one.sent == other.sent


# What is updated


def test_gradients_are_added_up_row_by_row(small: Any, together: Together) -> None:
    def work(member: Collective) -> dict[str, Tensor]:
        mine = small(Sync, member)
        before = mine.parameters()
        inputs, own = ([1, 5], [3]) if member.rank == 0 else ([5], [3, 9])
        mine.step(mine.touched(inputs, [0, 2], own))
        return {name: before[name] - after for name, after in mine.parameters().items()}

    for change in together(2, work):
        visits = {"embedding": {1: 1, 5: 2}, "weight": {0: 2, 2: 2, 3: 2, 9: 1}}
        for name, rows in visits.items():
            expected = torch.tensor([float(rows.get(row, 0)) for row in range(12)])
            torch.testing.assert_close(change[name], expected[:, None].expand(12, 2))
        torch.testing.assert_close(change["bias"], change["weight"][:, 0])
        torch.testing.assert_close(change["block"], torch.full((6, 2), 2.0))


def test_a_block_that_nobody_used_is_left_alone(small: Any, together: Together) -> None:
    """Its optimiser must not see a gradient of zeros: momentum would move it."""

    def work(member: Collective) -> list[bool]:
        mine = small(Sync, member)
        seen = []
        step = mine.updater.dense_optimizer.step

        def listening() -> None:
            seen.extend(block.grad is not None for block in mine.blocks.values())
            step()

        mine.updater.dense_optimizer.step = listening
        rows = mine.exchange.fetch(touched := mine.touched([1], [2], []))
        total = rows["embedding"].sum() + rows["weight"].sum() + rows["bias"].sum()
        if member.rank == 1:
            total = total + mine.blocks["gain"].sum()
        total.backward()
        mine.exchange.push(touched, rows, mine.blocks)
        mine.exchange.update()
        return seen

    assert together(2, work) == [[False, True]] * 2


def test_a_table_that_the_loss_left_out(small: Any, together: Together) -> None:
    def work(member: Collective) -> dict[str, Tensor]:
        mine = small(Sync, member)
        rows = mine.exchange.fetch(touched := mine.touched([1], [2], [3]))
        rows["embedding"].sum().backward()
        mine.exchange.push(touched, rows, mine.blocks)
        mine.exchange.update()
        return mine.parameters()

    for found in together(2, work):
        assert found["weight"].eq(1).all() and not found["bias"].any()
        assert found["embedding"][1].tolist() == [2 / 64 - 2, 3 / 64 - 2]


def test_the_next_step_is_announced_while_the_wire_works(small: Any, together: Together) -> None:
    def work(member: Collective) -> list[str]:
        mine, order = small(Sync, member), []
        first, second = mine.touched([1], [2], [3]), mine.touched([4], [5], [])
        gather, all_reduce = member.all_gather, member.all_reduce
        member.all_gather = lambda *given: (order.append("gather"), gather(*given))[1]
        member.all_reduce = lambda *given: (order.append("sum"), all_reduce(*given))[1]

        def meanwhile() -> None:
            order.append("meanwhile")
            mine.exchange.announce(second)

        mine.exchange.announce(first)
        mine.step(first, meanwhile=meanwhile)
        order.append("next")
        mine.step(second)
        return order

    values = ["gather", "sum", "gather", "sum"]
    expected = ["gather", *values, "meanwhile", "gather", "next", *values]
    assert together(2, work) == [expected] * 2


def test_output_rows_go_while_backward_goes_on(small: Any, together: Together) -> None:
    """As soon as their gradients are ready: before that of the embedding is there."""

    def work(member: Collective) -> bool:
        mine = small(Sync, member)
        rows = mine.exchange.fetch(touched := mine.touched([1, 2], [2, 3], []))
        sent_at = member.meter.sent
        early = []

        class Below(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                early.append(member.meter.sent > sent_at)
                return gradient

        hidden = Below.apply(rows["embedding"])
        (hidden @ rows["weight"].t() + rows["bias"]).sum().backward()
        mine.exchange.push(touched, rows, mine.blocks)
        mine.exchange.update()
        return early == [True]

    assert together(2, work) == [True, True]


def test_a_steps_rows_are_gone_after_it(small: Any, together: Together) -> None:
    """Without waiting for the garbage collector: they are as large as the sample."""

    def work(member: Collective) -> list[bool]:
        mine = small(Sync, member)
        touched = mine.touched([1], [2, 3], [])
        rows = mine.exchange.fetch(touched)
        sum(leaf.sum() for leaf in rows.values()).backward()
        mine.exchange.push(touched, rows, mine.blocks)
        mine.exchange.update()
        references = [weakref.ref(leaf) for leaf in rows.values()]
        del rows
        return [reference() is None for reference in references]

    gc.disable()
    try:
        assert together(2, work) == [[True] * 3] * 2
    finally:
        gc.enable()


def test_a_gradient_that_is_not_finite_changes_nothing_anywhere(
    small: Any, together: Together
) -> None:
    def work(member: Collective) -> tuple[float, bool]:
        mine = small(Sync, member)
        before = mine.parameters()
        norm = mine.step(
            mine.touched([1], [2], [3]), scale=float("inf") if member.rank == 1 else 1.0
        )
        after = mine.parameters()
        return norm, all(torch.equal(before[name], after[name]) for name in before)

    for norm, same in together(2, work):
        assert not norm < float("inf") and same


# Hidden blocks

HIDDEN = [
    ("feedback", 0.25, "fp32"),
    ("feedback", 0.25, "int8"),
    ("largest", 0.25, "int8"),
    ("unbiased", 0.5, "bf16"),
]


@pytest.mark.parametrize(("kind", "fraction", "codec"), HIDDEN)
def test_part_of_the_hidden_blocks(
    kind: str,
    fraction: float,
    codec: str,
    toy_data: Path,
    tiny: Settings,
    trained: Any,
    together: Together,
) -> None:
    def run(**exchange: Any) -> Any:
        config = tiny(exchange={"codec": codec, **exchange}, model={"layers": 2})
        return together(2, partial(trained, toy_data, config, 25))

    whole, part = run(), run(hidden_fraction=fraction, hidden_kind=kind)
    assert_equal(*part)
    assert part[0].sent[-1] < whole[0].sent[-1]
    assert part[0].losses[-1] < part[0].losses[0] - 0.3  # it learns
    start = trained(toy_data, tiny(model={"layers": 2}), 0)
    for name in part[0].trainer.run.blocks:
        changed = part[0].parameters[name] != start.parameters[name]
        assert float(changed.float().mean()) > 0.9, name  # every row has travelled


def test_feedback_adds_up_over_all_workers(small: Any, together: Together) -> None:
    """What was applied and what waits at the workers is all there was."""

    def work(member: Collective) -> tuple[Tensor, Tensor]:
        mine = small(Sync, member, hidden_fraction=0.3)
        before = mine.parameters()["block"]
        for step in range(9):
            mine.step(mine.touched([1], [2], []), scale=1.0 + member.rank + step)
        waiting = mine.exchange.state().own["block"]
        return before - mine.parameters()["block"], waiting

    (applied, one), (_, other) = together(2, work)
    total = sum((1.0 + step) + (2.0 + step) for step in range(9))
    torch.testing.assert_close(applied + one + other, torch.full((6, 2), total))
    assert one.any() and other.any()


# Faults


@pytest.mark.parametrize("failing", range(14))
def test_a_call_that_fails_ends_every_worker(
    failing: int, toy_data: Path, tiny: Settings, trained: Any, outcomes: Together
) -> None:
    """For each call of two steps: a sentence on both sides, and no hang."""

    def work(member: Collective) -> Any:
        if member.rank == 1:
            member = Faulty(member, failing)
        return trained(toy_data, tiny(), 2, member)

    found = outcomes(2, work)
    assert all(isinstance(outcome, UserError) for outcome in found)
    assert str(found[1]) == "worker 1 of 2 has lost the others"
    assert "worker 1 of 2 has left" in str(found[0])


def test_that_was_every_call(
    toy_data: Path, tiny: Settings, trained: Any, together: Together
) -> None:
    def work(member: Collective) -> int:
        faulty = Faulty(member, failing_call=99)
        trained(toy_data, tiny(), 2, faulty)
        return faulty._num_calls

    # Two steps of a sum of numbers and four of values, three announcements, one hash of the end.
    assert together(2, work) == [2 * 5 + 3 + 1] * 2
