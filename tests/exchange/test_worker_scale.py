"""Optimisers of several workers at the scale of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from thinwire.exchange.config import ExchangeConfig
from thinwire.exchange.contract import ExchangeState
from thinwire.exchange.periodic import Periodic
from thinwire.exchange.sync import Sync
from thinwire.exchange.worker_scale import merge, spread
from thinwire.optim import OptimConfig, dense_optimizer, named_state, row_optimizer
from thinwire.optim.config import DenseKind, RowKind
from thinwire.optim.updater import Updater
from thinwire.touched import Touched
from thinwire.transport.collective import Collective

Together = Callable[..., list[Any]]
W, V, D = 4, 6, 8


@pytest.mark.parametrize("rows", ["adagrad", "adagrad_full"])
@pytest.mark.parametrize("blocks", ["adagrad"])
def test_with_an_initial_accumulator_a_step_is_the_synchronous_one(
    rows: RowKind, blocks: DenseKind, together: Together
) -> None:
    """Row 0 is of all workers, row 1 + r of worker r alone; what is saved is one worker's."""

    def work(member: Collective, make: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        table, block = nn.Parameter(torch.zeros(V, D)), nn.Parameter(torch.zeros(3, D))
        optim = OptimConfig(kind=blocks, rows=rows, initial_accumulator=1.0, lr=0.1, row_lr=0.1)
        updater = Updater(
            {"table": table},
            {"block": block},
            row_optimizer([table], optim),
            dense_optimizer([block], optim),
            clip=0.0,
        )
        kind = "sync" if make is Sync else "periodic"
        exchange = make(updater, member, ExchangeConfig(kind=kind, local_steps=1, fragments=1), 1)
        ids = torch.tensor([0, 1 + member.rank])
        generator = torch.Generator().manual_seed(member.rank)
        gradients = [0.01 * torch.randn(n, D, generator=generator) for n in (2, 3)]
        touched = Touched({"table": ids})
        fetched = exchange.fetch(touched)
        loss = (fetched["table"] * gradients[0]).sum() + (block * gradients[1]).sum()
        (loss / exchange.num_summed).backward()
        exchange.push(touched, fetched, {"block": block})
        exchange.update()
        exchange.flush()
        exchange.merge_optimizers()
        state = named_state(updater.row_optimizer, {table: "table"})
        state |= named_state(updater.dense_optimizer, {block: "block"})
        moved = {"table": table.detach().clone(), "block": block.detach().clone()}
        return moved, {name: value.clone() for name, value in state.items()}

    sync = together(W, lambda member: work(member, Sync))
    periodic = together(W, lambda member: work(member, Periodic))
    for (moved, state), (expected, expected_state) in zip(periodic, sync, strict=True):
        for name, value in expected.items():
            torch.testing.assert_close(moved[name], value, rtol=1e-3, atol=1e-7)
        for name, value in expected_state.items():
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "kind",
    [*(f"rows {k}" for k in get_args(RowKind)), *(f"blocks {k}" for k in get_args(DenseKind))],
)
def test_merging_what_was_spread_gives_it_back(kind: str, together: Together) -> None:
    what, name = kind.split()

    def work(member: Collective) -> None:
        parameter = nn.Parameter(torch.zeros(V, D))
        if what == "rows":
            optimizer: Any = row_optimizer([parameter], OptimConfig(rows=name))  # type: ignore[arg-type]
        else:
            optimizer = dense_optimizer([parameter], OptimConfig(kind=name))  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(3)
        for _ in range(3):
            parameter.grad = torch.randn(V, D, generator=generator)
            optimizer.step()
        before = {n: t.clone() for n, t in named_state(optimizer, {parameter: "p"}).items()}
        spread(optimizer, member.size)
        merge(optimizer, {"p": parameter}, member)
        after = named_state(optimizer, {parameter: "p"})
        assert after.keys() == before.keys()
        for key, value in before.items():
            torch.testing.assert_close(after[key], value)

    together(3, work)


def test_a_loaded_momentum_goes_to_the_device_of_its_parameter(
    small: Any, together: Together
) -> None:
    def work(member: Collective) -> None:
        mine = small(Periodic, member, outer_momentum=0.5)
        name = "block"
        mine.exchange._parameters[name] = torch.empty(6, 2, device="meta")
        mine.exchange.load_state(3, ExchangeState(shared={name: torch.ones(6, 2)}))
        assert mine.exchange._momentum[name].device.type == "meta"

    together(2, work)
