"""Evaluating and saving see all that waits applied, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from thinwire.config import RunConfig
from thinwire.exchange.config import ExchangeConfig
from thinwire.optim.config import DenseKind, OptimConfig, RowKind
from thinwire.parameter_server.shard import Shard
from thinwire.parameter_server.sharding import optimizers_of, parameters_of, sliced_shard
from thinwire.runs.checkpoints import Checkpoints

from .test_leader import STEP_TOKENS, lines, model, plain, together

__all__ = ["plain"]
Settings = Callable[..., RunConfig]
V, D = 6, 4


def shard(optim: OptimConfig) -> Shard:
    generator = torch.Generator().manual_seed(3)
    tables = {"table": nn.Parameter(torch.randn(V, D, generator=generator))}
    blocks = {n: nn.Parameter(torch.randn(3, D, generator=generator)) for n in ("one", "other")}
    return sliced_shard(tables, blocks, 0, 2, optim, ExchangeConfig(kind="async", accumulate=3))


def add(shard: Shard, number: int) -> None:
    """The gradients of a push: of two of three rows, and of a block."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randperm(3, generator=generator)[:2]
    gradients = {"table": (ids, torch.randn(2, D, generator=generator))}
    gradients["one"] = None, torch.randn(shard.blocks["one"].shape, generator=generator)
    shard._buffer.add(gradients)
    if shard._buffer.size == shard.config.accumulate:
        shard._update(shard._buffer.take())


def held(shard: Shard) -> dict[str, Tensor]:
    changed = {f"changed/{n}": t for n, t in shard._changed.items()}
    found = parameters_of(shard) | optimizers_of(shard) | changed
    return {n: t.clone() for n, t in found.items()} | {"version": torch.tensor(shard.version)}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


KINDS: list[dict[str, Any]] = [
    *({"rows": kind} for kind in get_args(RowKind)),
    *({"kind": kind} for kind in get_args(DenseKind)),
]


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: " ".join([*kinds, *kinds.values()]))
@pytest.mark.parametrize("before", [0, 2, 3, 5])
def test_what_waits_is_applied_inside_and_waits_again_afterwards(
    kinds: dict[str, Any], before: int
) -> None:
    """After no update or one, with no gradients waiting or two; the next update is the same."""
    decay = {"weight_decay": 0.1} if "adamw" in kinds.values() else {}
    optim = OptimConfig(**{"lr": 0.1, "row_lr": 0.1, **kinds, **decay})
    mine, flushed, left_alone = shard(optim), shard(optim), shard(optim)
    for number in range(before):
        for each in (mine, flushed, left_alone):
            add(each, number)
    flushed.flush()
    unsettled = held(mine)
    with mine.flushed():
        assert_equal(held(mine), held(flushed))
        assert before % 3 == 0 or not torch.equal(held(mine)["one"], unsettled["one"])
    assert_equal(held(mine), unsettled)
    for number in range(before, 9):
        add(mine, number)
        add(left_alone, number)
    assert_equal(held(mine), held(left_alone))


@pytest.mark.parametrize("num_shards", [1, 2])
def test_no_evaluation_or_save_steers_a_run(
    num_shards: int, toy_data: Path, tmp_path: Path, tiny: Settings, plain: None
) -> None:
    """Evaluated and saved as often as can be, in the middle of what is collected, or never."""
    sections: dict[str, Any] = {
        "run": {"tokens": 10 * STEP_TOKENS},
        "exchange": {"kind": "async", "accumulate": 4},
        "optim": {"rows": "adamw", "weight_decay": 0.1, "row_lr": 0.01},
        "eval": {"every_tokens": 10**6, "tokens": 60},
    }
    never = tiny(**sections, checkpoint={"every_tokens": 10**6})
    together(toy_data, tmp_path / "never", never, num_shards=num_shards)
    sections["eval"] = {"every_tokens": 1, "tokens": 60}
    always = tiny(**sections, checkpoint={"every_tokens": 1})
    together(toy_data, tmp_path / "always", always, num_shards=num_shards)
    assert [line["step"] for line in lines(tmp_path / "never", "valid")] == [10]
    # At least after the first step, of whose four pushes one has come, and at the end.
    assert lines(tmp_path / "always", "valid")[0]["step"] == 1
    assert_equal(model(tmp_path / "always"), model(tmp_path / "never"))
    optimizers = [Checkpoints(tmp_path / r).load().open("optimizer") for r in ("always", "never")]
    assert_equal(*optimizers)
