"""What a run says of itself when it starts: a line for the record, and a sentence for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.runs.precision import has_bf16_units


def start_values(
    config: RunConfig, device: torch.device, num_workers: int, num_parameters: int, data: str
) -> dict[str, Any]:
    """Of the `start` line in metrics.jsonl; `data` is the data folder's fingerprint."""
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
        device: where the model lives.
        num_workers: workers that train it.
        num_parameters: numbers in all parameters.
        num_dense: numbers in the blocks.
        vocab_size: words.
        limits: of the budget, by what they limit.
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
