"""`thinwire.train`: the command `thinwire train` as a function that returns the trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinwire.config import Device, RunConfig, read_toml, typed_sections
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.inference.load import load
from thinwire.inference.trained_model import TrainedModel
from thinwire.launch.start import start, under_torchrun
from thinwire.runs.metrics import OnEvent

INTERRUPTED = 130
Section = Mapping[str, Any]


def train(
    data_folder: str | Path | Corpus,
    /,
    out: str | Path,
    *,
    resume: bool = False,
    config: str | Path | None = None,
    on_event: OnEvent | None = None,
    seconds: float | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
    seed: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
    device: Device | None = None,
    run: Section | None = None,
    model: Section | None = None,
    loss: Section | None = None,
    data: Section | None = None,
    optim: Section | None = None,
    exchange: Section | None = None,
    eval: Section | None = None,
    checkpoint: Section | None = None,
    metrics: Section | None = None,
) -> TrainedModel:
    """Train a language model, as `thinwire train` does, and return it.

    Progress is shown on standard error. Ctrl+C, or the interrupt of a notebook, saves a checkpoint
    and raises KeyboardInterrupt; the same call with `resume=True` continues.

    Args:
        data_folder: the folder that `prepare` made, or the `Corpus` that it returned.
        out: the run folder to create.
        resume: continue the run in `out` with its own settings. Its budget may be raised.
        config: a TOML file with settings, over which the arguments are laid.
        on_event: called in this process with each line of `metrics.jsonl`, as a dict, when it is
            written. If it returns False, the run ends as if its budget were spent: it is evaluated
            and saved, and the model is returned. Needs a single worker.
        seconds: training budget in seconds. None, with no other budget: 600.
        tokens: training budget in tokens, over all workers.
        epochs: training budget in passes over the training split.
        seed: the seed of all random numbers.
        threads: compute threads of each worker; 0: the cores are divided evenly.
        workers: worker processes on this machine. A script that asks for several needs the usual
            `if __name__ == "__main__":`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        run: other settings of the section `[run]` of a settings file, by name.
        model: settings of the section `[model]`: `{"width": 512}`.
        loss: settings of `[loss]`.
        data: settings of `[data]`.
        optim: settings of `[optim]`.
        exchange: settings of `[exchange]`.
        eval: settings of `[eval]`.
        checkpoint: settings of `[checkpoint]`.
        metrics: settings of `[metrics]`.

    Returns:
        The model of the checkpoint with the best validation perplexity, as `thinwire.load` returns
        it.

    Raises:
        UserError: the user can correct the cause; the message says how.
        KeyboardInterrupt: the run was interrupted, and has saved a checkpoint.

    Examples:
        >>> import thinwire
        >>> model = thinwire.train("data", "trained", tokens=20_000, model={"width": 32})
        >>> model.perplexity("the cat sees a dog") < 100
        True
    """
    if under_torchrun():
        raise UserError(
            "thinwire.train starts its workers itself: under torchrun, use "
            "torchrun ... -m thinwire train"
        )
    flags = {
        "seconds": seconds,
        "tokens": tokens,
        "epochs": epochs,
        "seed": seed,
        "threads": threads,
        "workers": workers,
        "device": device,
    }
    given = {
        "run": {**(run or {}), **{key: flag for key, flag in flags.items() if flag is not None}},
        "model": model,
        "loss": loss,
        "data": data,
        "optim": optim,
        "exchange": exchange,
        "eval": eval,
        "checkpoint": checkpoint,
        "metrics": metrics,
    }
    out = Path(out)
    settings = _settings(given, None if config is None else Path(config), out if resume else None)
    folder = data_folder.path if isinstance(data_folder, Corpus) else Path(data_folder)
    try:
        start(folder, out, settings, resume=resume, on_event=on_event)
    except SystemExit as end:  # a process of an asynchronous run has printed why it ended
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        raise UserError(f"the run has ended with status {end.code}, as it says above") from None
    return load(out, device=settings.run.device)


def _settings(given: Mapping[str, Any], file: Path | None, resumed: Path | None) -> RunConfig:
    """The given settings, laid over a settings file or, to resume, over the run's settings."""
    if file is None and resumed is not None and (resumed / "config.toml").exists():
        file = resumed / "config.toml"
    sections = {} if file is None else read_toml(file)
    sections.pop("corpus", None)  # the data folder of the run
    merged = typed_sections(sections, str(file))
    named = {section: values for section, values in given.items() if values is not None}
    for section, values in typed_sections(named, "thinwire.train").items():
        merged[section] = {**merged.get(section, {}), **values}
    return RunConfig.from_dict(merged)
