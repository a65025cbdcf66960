"""Writes the run that an adaptation trains: settings, data, and a step 0 that is the old model.

Training then resumes from that step. So the ordinary loop, every exchange, and stopping and
resuming work for adaptation too. The folder appears under its name when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinwire.adapt.options import AdaptOptions
from thinwire.config import RunConfig
from thinwire.data.batches import Batches
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.files import set_aside
from thinwire.interrupts import interrupt_later
from thinwire.runs.folder import CONFIG_FILE, FROZEN_FILE, RunFolder, require_utf8
from thinwire.runs.run import Run

ABOUT_FILE = "adapt.json"
DATA_FOLDER = "data"
STREAMS = 16
STREAM_TOKENS = 8  # a pass over a short text has at least this many steps
EVALUATIONS = 12
PASSES = {"continue": 4.0, "layers": 6.0}
LR = {"continue": 5e-4, "layers": 2e-3}
ROW_LR = {"continue": 0.05, "layers": 0.1}


def settings(
    base: RunConfig, options: AdaptOptions, num_tokens: int, pass_tokens: float
) -> RunConfig:
    """The settings of the new run: those of the base, except what adaptation sets itself.

    Args:
        base: the settings of the run that is adapted.
        options: the settings of the adaptation.
        num_tokens: number of tokens of the mixture.
        pass_tokens: number of tokens of the mixture for each pass over the new text.
    """
    W, length = options.workers, base.data.length
    streams = options.batch or max(W, min(STREAMS, num_tokens // (length * STREAM_TOKENS)))
    tokens = options.tokens
    passes = options.passes
    if tokens is None and passes is None and options.seconds is None:
        passes = PASSES[options.method]
    if passes is not None:
        tokens = min(tokens or round(passes * pass_tokens), round(passes * pass_tokens))
    every = max(1, round(min(tokens / EVALUATIONS, pass_tokens))) if tokens else 0
    evaluations = replace(
        base.eval,
        tokens=0,
        patience=options.patience,
        every_tokens=every,
        every_seconds=(options.seconds or base.eval.every_seconds) / EVALUATIONS,
    )
    run = replace(
        base.run,
        seconds=options.seconds,
        tokens=tokens,
        epochs=None,
        seed=options.seed,
        threads=options.threads,
        workers=W,
        device=options.device,
    )
    optim = replace(
        base.optim,
        lr=options.lr or LR[options.method],
        row_lr=options.row_lr or ROW_LR[options.method],
        schedule="cosine",
    )
    exchange = replace(base.exchange, kind=options.exchange, codec=options.codec)
    data = replace(base.data, batch=max(1, streams // W))
    return replace(base, run=run, optim=optim, exchange=exchange, data=data, eval=evaluations)


@contextmanager
def new_run(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, which is renamed to `out` if no error occurs inside.

    Raises:
        UserError: `out` exists already.
    """
    refuse_existing(out)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.new")
    with set_aside() as release:
        try:
            folder.mkdir()
            yield folder
            if out.exists():
                out.rmdir()  # empty, as was checked
            folder.rename(out)
        finally:
            with interrupt_later():  # Ctrl+C often comes twice
                release()
                shutil.rmtree(folder, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Raises UserError: `out` exists and is not an empty folder, or its name is not UTF-8."""
    require_utf8(out)
    if (out / CONFIG_FILE).exists():
        raise UserError(f"{out} already holds a run: go on with --resume, or name another --out")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is no empty folder: give --out another name")


def write_run(
    folder: Path,
    out: Path,
    config: RunConfig,
    parameters: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> Run:
    """Fill `folder`, which has its data already, with the run that will be `out`.

    Args:
        folder: the folder to write to.
        out: the name that the folder will get.
        config: all settings.
        parameters: the initial parameters, by name.
        optimizer: the initial state of the optimisers, by name; entries may be missing.
        about: the content of adapt.json.

    Returns:
        The run, with step 0 saved as its best.
    """
    corpus = Corpus.open(folder / DATA_FOLDER)
    here = config
    if config.model.frozen:
        here = replace(config, model=replace(config.model, frozen=str(folder / FROZEN_FILE)))
    planned = RunFolder.planned(folder, here, corpus)
    run = Run(planned, here, corpus, torch.device("cpu"), config.run.workers)
    with torch.no_grad():
        for name, parameter in {**run.tables, **run.blocks}.items():
            if name in parameters:
                parameter.copy_(parameters[name])
    state = run.optimizer_state()
    kept = {name: tensor for name, tensor in optimizer.items() if _fits(tensor, name, state)}
    of_kept = {name.rpartition("/")[0] for name in kept}
    fresh = {name: t for name, t in state.items() if name.rpartition("/")[0] not in of_kept}
    run.load_optimizer_state({**fresh, **kept})
    batches = Batches(
        corpus.ids("train"),
        config.data,
        seed=config.run.seed,
        eos_id=corpus.meta.eos_id,
        num_workers=config.run.workers,
    )
    run.take_evaluation(run.measure().ppl, None)
    assert run.checkpoints is not None
    run.checkpoints.in_background = False  # on Ctrl+C the folder is removed at once
    run.save({}, batches.state_dict(), best=True)
    (folder / ABOUT_FILE).write_text(json.dumps(dict(about), indent=1) + "\n", encoding="utf-8")
    final = replace(planned, config=config, data=out.absolute() / DATA_FOLDER)
    final.write(corpus)
    return run


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy if the target is on another disk."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _fits(tensor: Tensor, name: str, state: Mapping[str, Tensor]) -> bool:
    parameter = name.rpartition("/")[0]
    return any(other.rpartition("/")[0] == parameter for other in state)
