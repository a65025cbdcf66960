"""What races towards a perplexity have in common: the course, its measurements, and the analysis.

A race is over when a run first reaches the target on the validation text. The runs save snapshots,
which are evaluated when all is over, on all cores, so that no device spends time on it; while a
snapshot is saved the training clock stands still.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import NamedTuple

import torch

from thinwire.data.corpus import Corpus
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.evaluation import evaluate
from thinwire.runs.folder import RunFolder
from thinwire.runs.metrics import read_metrics

TARGET = 250.0
"""Validation perplexity at which a race is over."""
WORKERS = 4
SHARE = 0.4
"""Of one core, for each device."""


class Point(NamedTuple):
    """Where a run stood: tokens trained on and seconds of training so far, and perplexity."""

    tokens: int
    seconds: float
    ppl: float


def snapshots(run: Path, target: float = 0.0, num_tokens: int = 20_000) -> list[Point]:
    """The steps that a run has saved, with their exact perplexity, until one reaches a target.

    Args:
        run: a run folder.
        target: what comes after this perplexity is left out.
        num_tokens: of the validation text that are scored, spread over it.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    folder, checkpoints = RunFolder.open(run), Checkpoints(run)
    ids = Corpus.open(folder.data).ids("valid")
    points = []
    for step in checkpoints.steps:
        saved = checkpoints.load(step)
        found = evaluate(
            folder.load_model(saved),
            ids,
            eos_id=folder.eos_id,
            unk_id=folder.unk_id,
            data=folder.config.data,
            max_tokens=num_tokens,
        )
        points.append(Point(saved.state["tokens"], saved.state["seconds"], found.ppl))
        if found.ppl <= target:
            break
    return points


def reached(points: Sequence[Point], target: float) -> Point | None:
    """Where a curve first reaches a perplexity; ln ppl is taken as straight between two points."""
    before: Point | None = None
    for point in points:
        if point.ppl <= target:
            if before is None:
                return point
            part = log(before.ppl / target) / log(before.ppl / point.ppl)
            return Point(
                round(before.tokens + part * (point.tokens - before.tokens)),
                before.seconds + part * (point.seconds - before.seconds),
                target,
            )
        before = point
    return None


def steady(run: Path) -> dict[str, float]:
    """What a run's metrics say of its speed; its first fifth, in which caches fill, does not count.

    Returns:
        tokens_per_second: of all workers.
        step_bytes: that a worker sends in a step; where a server answers, with its answers.
        of_dense: how many times that all parameters would be.
        waiting: the part of its time that a worker waits for the wire.
    """
    config = RunFolder.open(run).config
    is_async, workers = config.exchange.kind == "async", config.run.workers
    # A step is one of all workers together, but of each its own where nobody waits.
    step_workers = 1 if is_async else workers
    train = [line for line in read_metrics(run) if line["event"] == "train"]
    if is_async:
        # Pushes may come in bursts, one of each worker: whole rounds count.
        rounds = [line for line in train if line["step"] % workers == 0]
        train = rounds if len(rounds) > 2 else train
    first, last = train[len(train) // 5], train[-1]

    def growth(name: str) -> float:
        return float(last.get(name, 0.0) - first.get(name, 0.0))

    sent, seconds = growth("bytes_sent"), growth("seconds")
    return {
        "tokens_per_second": growth("tokens") / seconds,
        "step_bytes": sent / growth("step") / step_workers,
        "of_dense": growth("bytes_dense") / sent if sent else 0.0,
        "waiting": growth("exchange_seconds") / seconds,
    }
