"""Chooses the precision of matrix products in training: as asked for or, with `auto`, the faster.

bf16 is faster only if the device has units for it, and not for every shape. If there are units, a
probe takes steps of the run's own model, with a small vocabulary and batch, in both precisions in
turn.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from thinwire.config import RunConfig
from thinwire.data.batches import Batch
from thinwire.language_model import LanguageModel
from thinwire.seeds import torch_generator
from thinwire.transport.collective import Collective

PROBE_SECONDS = 0.5
LEAST_PAIRS = 3
# One thread of a processor with AVX-512 bf16: below this width, bf16 was slower for Transformers
# and convolutions (0.57 to 0.88 times as fast) and at most 1.17 times as fast for LSTMs; from 256
# on, 1.2 to 2.4 times as fast for all.
LEAST_WIDTH = 128
# A smaller speed-up could be noise, and is not worth the loss of precision.
CLEARLY_FASTER = 1.15
PROBE_WORDS, PROBE_STREAMS, PROBE_LENGTH = 4096, 32, 32
UNITS = {"avx512_bf16", "amx_bf16"}
"""The flags in Linux's /proc/cpuinfo that processors with bf16 units have."""


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device has bf16 units; False for a CPU whose /proc/cpuinfo cannot be read."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        return not UNITS.isdisjoint(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False


def with_precision(config: RunConfig, device: torch.device) -> RunConfig:
    """The settings, with `auto` replaced by fp32 or bf16."""
    if config.run.precision != "auto":
        return config
    pays = (
        config.model.width >= LEAST_WIDTH
        and not config.model.frozen
        and has_bf16_units(device)
        and speed_up(config, device) >= CLEARLY_FASTER
    )
    return replace(config, run=replace(config.run, precision="bf16" if pays else "fp32"))


def with_precision_of_first(config: RunConfig, first: RunConfig, team: Collective) -> RunConfig:
    """The settings, with `auto` replaced by the precision of the first worker.

    Args:
        config: the settings of this worker.
        first: on the first worker, its settings with its precision; ignored on the others.
        team: all workers; every worker must call this.
    """
    precision = first.run.precision
    if team.size > 1:
        precision = team.all_gather_json(precision)[0]
    if config.run.precision != "auto":
        return config
    return replace(config, run=replace(config.run, precision=precision))


def speed_up(config: RunConfig, device: torch.device) -> float:
    """How many times faster loss and gradients are in bf16; medians of steps taken in turn."""
    counts_V = torch.arange(PROBE_WORDS, 0, -1)
    shape = min(config.data.batch, PROBE_STREAMS), min(config.data.length, PROBE_LENGTH) + 1
    generator = torch_generator(config.run.seed, "probe")
    ids_BT = torch.randint(PROBE_WORDS, shape, generator=generator).to(device)
    batch = Batch(ids_BT[:, :-1], ids_BT[:, 1:], None, ids_BT[:, 1:].numel())
    models = [
        LanguageModel(config.model, config.loss, counts_V, config.run.seed, in_bf16=in_bf16).to(
            device
        )
        for in_bf16 in (False, True)
    ]
    for model in models:
        _seconds(model, batch)
    times: list[list[float]] = [[], []]
    began = perf_counter()
    while len(times[0]) < LEAST_PAIRS or perf_counter() - began < PROBE_SECONDS:
        for model, taken in zip(models, times, strict=True):
            taken.append(_seconds(model, batch))
    return median(times[0]) / median(times[1])


def _seconds(model: LanguageModel, batch: Batch) -> float:
    """The seconds that loss and gradients of a batch take."""
    task = model.touch(batch, 0)
    rows = {
        name: (table if ids is None else table[ids]).detach().clone().requires_grad_()
        for name, table in model.tables().items()
        for ids in [task.touched.rows[name]]
    }
    model.zero_grad()
    began = perf_counter()
    total, _ = model.loss(task, rows, None, None)
    total.backward()
    if batch.inputs_BT.device.type == "cuda":
        torch.cuda.synchronize(batch.inputs_BT.device)
    return perf_counter() - began
