"""Every exchange, optimiser, model and loss trains, resumes and is used on a device that refuses
tensors of the CPU.

All combinations are tens of thousands; the cases here are chosen so that every pair of two
values, as (periodic, adamw) or (lstm, nce), is in one of them, but for those that are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
import torch

from thinwire import load
from thinwire.config import RunConfig
from thinwire.exchange.config import CodecName
from thinwire.inference.evaluate import evaluate_split
from thinwire.loss.config import LossKind
from thinwire.models.config import ModelKind
from thinwire.optim.config import DenseKind, RowKind
from thinwire.runs.checkpoints import Checkpoints
from thinwire.training.loop import train

from .parameter_server.together import together as served
from .standin_device import DEVICE

torch.set_num_threads(1)

PERIODIC = {"local_steps": 2, "fragments": 2}
EXCHANGES: dict[str, list[dict[str, Any]]] = {
    "alone": [{}] * 3,
    "sync": [
        {},
        {"hidden_fraction": 0.5, "hidden_kind": "largest"},
        {"delay": 1, "select": "everything"},
    ],
    "periodic": [
        PERIODIC,
        PERIODIC | {"outer_momentum": 0.5},
        PERIODIC | {"outer_momentum": 0.5, "select": "everything"},
    ],
    "async": [
        {"accumulate": 2, "select": "everything"},
        {"servers": 2},
        {"servers": 2, "hidden_fraction": 0.5},
    ],
}
"""How the workers agree, each in three ways."""
AXES: dict[str, list[Any]] = {
    "exchange": list(EXCHANGES),
    "way": [0, 1, 2],
    "rows": list(get_args(RowKind)),
    "dense": list(get_args(DenseKind)),
    "model": list(get_args(ModelKind)),
    "loss": list(get_args(LossKind)),
    "codec": list(get_args(CodecName)),
    "tied": [False, True],
    "dropout": [0.0, 0.2],
    "ngrams": [0, 3],
}
Case = dict[str, Any]


def refused(case: Case) -> bool:
    """The settings themselves say why."""
    return bool(case["tied"] and case["loss"] == "adaptive")


def pairs_of(case: Case) -> set[tuple[Any, ...]]:
    return {(a, case[a], b, case[b]) for a, b in combinations(AXES, 2)}


def covering() -> list[Case]:
    """Cases that hold all pairs; each is the one of several drawn by chance that adds most."""
    rng = Random(4)  # of seeds tried, one that needs few cases
    missing = {
        (a, x, b, y) for a, b in combinations(AXES, 2) for x, y in product(AXES[a], AXES[b])
    } - {("loss", "adaptive", "tied", True)}
    cases = []
    while missing:
        a, x, b, y = min(missing, key=repr)
        drawn = [
            {axis: rng.choice(values) for axis, values in AXES.items()} | {a: x, b: y}
            for _ in range(100)
        ]
        best = max(
            (case for case in drawn if not refused(case)),
            key=lambda case: len(pairs_of(case) & missing),
        )
        missing -= pairs_of(best)
        cases.append(best)
    return cases


def name_of(case: Case) -> str:
    return "-".join(map(str, case.values()))


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks where to compute is told: there."""
    for module in ("thinwire.runs.device", "thinwire.inference.load"):
        monkeypatch.setattr(f"{module}.find_device", lambda wanted: DEVICE)


def settings(tiny: Callable[..., RunConfig], case: Case, steps: int) -> RunConfig:
    workers = 1 if case["exchange"] == "alone" else 2
    exchange = EXCHANGES[case["exchange"]][case["way"]]
    if workers > 1:
        exchange = {"kind": case["exchange"], **exchange}
    adamw = "adamw" in (case["rows"], case["dense"])
    return tiny(
        run={"tokens": steps * workers * 28, "workers": workers},
        model={
            "kind": case["model"],
            "width": 64 if case["loss"] == "adaptive" else 8,
            "tied": case["tied"],
            "dropout": case["dropout"],
            "window": 4,
            "ngrams": case["ngrams"],
            "ngram_rows": 40,
        },
        loss={"kind": case["loss"]},
        optim={"kind": case["dense"], "rows": case["rows"], "lr": 1e-3, "row_lr": 1e-2}
        | {"weight_decay": 0.01 if adamw else 0.0},
        exchange=exchange | {"codec": case["codec"], "timeout_seconds": 5.0},
        eval={"tokens": 100, "every_seconds": 1000.0},
    )


@pytest.mark.usefixtures("second_device")
@pytest.mark.parametrize("case", covering(), ids=name_of)
def test_trains_resumes_and_is_used(
    case: Case,
    toy_data: Path,
    tmp_path: Path,
    tiny: Callable[..., RunConfig],
    together: Callable[..., list[Any]],
) -> None:
    run = tmp_path / "run"
    for resume, steps in ((False, 2), (True, 3)):
        config = settings(tiny, case, steps)
        if config.exchange.kind == "async":
            served(toy_data, run, config, 2, config.exchange.servers, resume=resume)
        elif config.run.workers == 1:
            train(toy_data, run, config, resume=resume)
        else:
            together(
                2,
                lambda member, config=config, resume=resume: train(
                    toy_data, run, config, resume=resume, collective=member
                ),
            )
    assert Checkpoints(run).load().state["tokens"] == 3 * config.run.workers * 28
    model = load(run)
    assert model.model.embedding.weight.device == DEVICE
    assert 1.0 < model.perplexity("The cat sees the dog.") < 1e4
    if case["dropout"]:  # these three do not depend on how it was trained
        evaluation = evaluate_split(model, None, "test").evaluation
        assert 1.0 < evaluation.ppl < 1e4
        assert model.generate("The", tokens=3, seed=1).startswith("The")
