"""Workers that hold the same model: proved to be the same, and handed what the first has loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.data.prepare import prepare
from thinwire.errors import UserError
from thinwire.exchange.contract import ExchangeState
from thinwire.runs.run import Run
from thinwire.training.replicas import (
    broadcast_state,
    check_replicas,
    gathered_state,
    require_same_run,
    scattered_state,
)
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective

Settings = Callable[..., RunConfig]
Together = Callable[..., list[Any]]
CPU = torch.device("cpu")


# The same everywhere


def test_replicas_that_are_the_same_pass(together: Together) -> None:
    parameters = {"a": torch.randn(3, 4), "b": torch.tensor(2.0), "c": torch.empty(0, 3)}
    together(3, lambda member: check_replicas(member, parameters))
    check_replicas(Alone(), parameters)


@pytest.mark.parametrize("change", ["a bit", "a name"])
def test_a_replica_that_differs_is_named(change: str, outcomes: Together) -> None:
    def work(member: Collective) -> None:
        parameters = {"a": torch.ones(3, 4), "b": torch.zeros(2)}
        if member.rank == 2 and change == "a bit":
            parameters["b"][1] = 1e-45
        elif member.rank == 2:
            parameters = {"a": parameters["a"], "c": parameters["b"]}
        check_replicas(member, parameters)

    for found in outcomes(3, work):
        assert isinstance(found, UserError)
        assert "the replicas differ: worker 0 of 3 has parameters with hash " in str(found)
        assert "worker 2 of 3 " in str(found)


def test_workers_that_agree_are_introduced(
    toy_data: Path, tiny: Settings, together: Together
) -> None:
    """Threads and devices are each machine's own affair."""

    def work(member: Collective) -> None:
        device = "cpu" if member.rank else "auto"
        config = tiny(run={"threads": 1 + member.rank, "device": device, "workers": 2})
        require_same_run(member, config, Corpus.open(toy_data))

    together(2, work)
    require_same_run(Alone(), tiny(), Corpus.open(toy_data))


def alter(member: Any, old: str, new: str) -> None:
    """Have a worker say something else."""
    gather = member.all_gather

    def all_gather(message: Tensor) -> Any:
        text = bytes(message.tolist()).decode()
        assert old in text
        return gather(torch.tensor(list(text.replace(old, new).encode()), dtype=torch.uint8))

    member.all_gather = all_gather


@pytest.mark.parametrize("what", ["settings", "data folder", "thinwire"])
def test_a_worker_that_differs_is_refused(
    what: str, toy_data: Path, tmp_path: Path, tiny: Settings, outcomes: Together
) -> None:
    (tmp_path / "text.txt").write_text("a b c d e f g\n" * 999)
    prepare([str(tmp_path / "text.txt")], out=tmp_path / "other", num_processes=1)

    def work(member: Collective) -> None:
        other = member.rank == 1
        config = tiny(loss={"samples": 21}) if other and what == "settings" else tiny()
        data = tmp_path / "other" if other and what == "data folder" else toy_data
        if other and what == "thinwire":
            alter(member, f'"{__version__}"', '"9.9"')
        require_same_run(member, config, Corpus.open(data))

    for found in outcomes(2, work):
        assert isinstance(found, UserError)
        sentence = str(found)
        assert sentence.startswith(f"worker 1 of 2 cannot join: its {what} is ")
        assert "that of worker 0 of 2 is " in sentence


# Handing out


def test_what_the_first_has_loaded_is_handed_out(
    toy_data: Path, tiny: Settings, together: Together
) -> None:
    """Parameters, the state of both optimisers, counts, and what each worker gets its part of."""
    corpus, config = Corpus.open(toy_data), tiny(optim={"rows": "adam", "kind": "adamw"})

    def work(member: Collective) -> Any:
        other_seed = replace(config, run=replace(config.run, seed=1 + member.rank))
        run = Run(None, other_seed, corpus, CPU, member.size)
        state, carry = None, {}
        if member.rank == 0:
            generator = torch.Generator().manual_seed(0)
            for table in run.tables.values():
                ids = torch.tensor([3, 5])
                gradient = torch.randn(2, *table.shape[1:], generator=generator)
                run.updater.row_optimizer.update_rows(table, ids, gradient)
            for block in run.blocks.values():
                block.grad = torch.randn(block.shape, generator=generator)
            run.updater.dense_optimizer.step()
            run.step, run.tokens, run.best_ppl = 17, 1700, 88.5
            state = {**run.state(), "batches": {"epoch": 1, "step": 2}}
            carry = {"state.0": torch.arange(6.0).view(3, 2), "shared.none": torch.empty(0, 3)}
        state, carry = broadcast_state(member, run, state, carry)
        parameters = {n: p.detach().clone() for n, p in {**run.tables, **run.blocks}.items()}
        return state, carry, parameters, run.optimizer_state(), run.step, run.tokens, run.best_ppl

    first, *others = together(3, work)
    assert first[4:] == (17, 1700, 88.5)
    for other in others:
        assert other[0] == first[0] and other[4:] == first[4:]
        for mine, its in zip(first[1:4], other[1:4], strict=True):
            assert mine.keys() == its.keys()
            for name, tensor in mine.items():
                assert tensor.dtype == its[name].dtype and torch.equal(tensor, its[name]), name


def test_a_run_that_begins_has_nothing_to_hand_out(
    toy_data: Path, tiny: Settings, together: Together
) -> None:
    def work(member: Collective) -> Any:
        run = Run(None, tiny(), Corpus.open(toy_data), CPU, member.size)
        before = [p.detach().clone() for p in run.tables.values()]
        found = broadcast_state(member, run, None, {})
        assert all(map(torch.equal, before, run.tables.values()))
        return found

    assert together(2, work) == [(None, {})] * 2


def test_each_gets_back_what_it_gave(together: Together) -> None:
    def work(member: Collective) -> None:
        streams = [torch.full((2, 3), float(member.rank)), torch.full((2,), 10.0 + member.rank)]
        own = ExchangeState(
            shared={"m": torch.ones(4)}, own={"w": torch.full((2, 2), 1.0 + member.rank)}
        )
        saved = gathered_state(member, streams, own)
        assert saved["state.0"].shape == (6, 3) and saved["state.1"].shape == (6,)
        assert saved["own.w"].shape == (3, 2, 2) and saved["shared.m"].tolist() == [1.0] * 4
        found, state = scattered_state(member, saved, own)
        assert all(map(torch.equal, streams, found))
        assert torch.equal(state.own["w"], own.own["w"])
        assert torch.equal(state.shared["m"], own.shared["m"])

    together(3, work)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_was_on_its_way_is_not_lost_where_there_are_more_or_fewer(
    size: int, together: Together
) -> None:
    saved = {"own.w": torch.arange(12.0).view(3, 2, 2), "shared.m": torch.ones(1)}
    like = ExchangeState(own={"w": torch.zeros(2, 2), "new": torch.zeros(5)})

    def work(member: Collective) -> dict[str, Tensor]:
        streams, state = scattered_state(member, saved, like)
        assert not streams
        return dict(state.own)

    found = together(size, work)
    assert torch.equal(sum(own["w"] for own in found), saved["own.w"].sum(0))
    assert not any(own["new"].any() for own in found)
