"""What is said when a run starts: a line for the record, and sentences for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.runs.precision import has_bf16_units


def start_values(
    config: RunConfig, device: torch.device, num_workers: int, num_parameters: int, data: str
) -> dict[str, Any]:
    """The values of the `start` line in metrics.jsonl.

    Args:
        config: all settings.
        device: the device that has the model.
        num_workers: number of workers that train it.
        num_parameters: total number of elements of all parameters.
        data: the fingerprint of the data folder.
    """
    return {
        "versions": {
            "thinwire": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(device),
        },
        "precision": config.run.precision,
        "workers": num_workers,
        "parameters": num_parameters,
        "config": config.fingerprint(),
        "data": data,
    }


def summary(
    config: RunConfig,
    device: torch.device,
    num_workers: int,
    num_parameters: int,
    num_dense: int,
    vocab_size: int,
    limits: Mapping[str, float | None],
) -> str:
    """Model, loss, workers and budget in a sentence.

    Args:
        config: all settings.
        device: the device that has the model.
        num_workers: number of workers that train it.
        num_parameters: total number of elements of all parameters.
        num_dense: number of elements of the dense blocks.
        vocab_size: number of words.
        limits: the budget in seconds, tokens and epochs; None: not limited.
    """
    threads = torch.get_num_threads()
    budget = ", ".join(
        f"{value:,.6g} {name}" for name, value in limits.items() if value is not None
    )
    workers = ""
    if num_workers > 1:
        workers = f"{num_workers} workers ({config.exchange.kind}, {config.exchange.codec}) of "
    precision: str = config.run.precision
    if precision == "bf16" and not has_bf16_units(device):
        precision += " (which it has no units for, so that it is slow)"
    return (
        f"{config.model.kind} of width {config.model.width}, "
        f"{num_parameters / 1e6:.1f} M parameters ({num_dense / 1e6:.2f} M dense), "
        f"{config.loss.kind} loss, {vocab_size:,} words, "
        f"{workers}{threads} thread{'s' if threads > 1 else ''} on {device} in "
        f"{precision}, seed {config.run.seed}; budget: {budget}"
    )


def resume_sentences(
    path: Path, step: int | None, *, is_spent: bool, stopped_early: str | None
) -> Iterator[str]:
    """Sentences about where a resumed run continues, and why it may end at once.

    Args:
        path: the run folder.
        step: the step that was loaded; None: no step had been saved.
        is_spent: whether the budget is spent already.
        stopped_early: why the run ended before its budget was spent; None: it did not.
    """
    start = "the start, as no step was saved" if step is None else f"step {step}"
    yield f"Going on from {start}, in {path}"
    if is_spent:
        yield "Its budget is spent: a larger --seconds, --tokens or --epochs trains it on."
    elif stopped_early is not None:
        yield (
            f"It has stopped early, with {stopped_early}: a larger --eval.patience, or 0, trains "
            "it on."
        )
