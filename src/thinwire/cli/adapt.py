"""`thinwire adapt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from thinwire.cli.flags import PrintJson


def adapt(
    run: Path,
    text: Annotated[list[str], Parameter(allow_leading_hyphen=True)],
    /,
    *,
    out: Path,
    method: Literal["continue", "layers"] = "continue",
    mix: str | None = None,
    mix_ratio: float | None = None,
    new_words: int = 0,
    input_layers: Annotated[bool, Parameter(negative="")] = False,
    valid: str | None = None,
    seconds: float | None = None,
    tokens: int | None = None,
    passes: float | None = None,
    patience: int = 3,
    lr: float | None = None,
    row_lr: float | None = None,
    batch: int | None = None,
    seed: int = 1,
    threads: int = 0,
    workers: int = 1,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    exchange: Annotated[
        Literal["sync", "async", "periodic", "auto"],
        Parameter(name=("--exchange", "--exchange.kind")),
    ] = "sync",
    codec: Literal["fp32", "bf16", "int8", "int4"] = "fp32",
    step: int | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    as_json: PrintJson = False,
) -> None:
    """Adapt a trained model to new text.

    The new run is a run like any other; the old one stays as it is. Held-out new text says when to
    stop and which state is the best, and is measured before and after, as old text is if there is
    any. Ctrl+C saves and stops; the same command with --resume continues.

    Parameters
    ----------
    run
        The run folder to adapt.
    text
        New UTF-8 text: files, folders (every file below them), globs in quotes, - for standard
        input; .gz, .xz and .zst are unpacked.
    out
        The run folder to create.
    method
        continue: train the whole model further, on new text mixed with old. layers: train small
        layers before the output, and the output biases, and nothing else.
    mix
        Old text, or a data folder of it with the model's tokenizer. Default: the data folder that
        the model was trained on, if it is still there.
    mix_ratio
        Tokens of old text for each token of new text. Default: 4 for continue where there is old
        text, otherwise 0.
    new_words
        Add at most this many words of the new text to the vocabulary: the most frequent ones that
        it lacks and that occur twice or more.
    input_layers
        With --method layers: insert a layer after the embedding too.
    valid
        Held-out new text (file, folder or glob), or the fraction of the lines of TEXT to hold out,
        in runs that are spread evenly. Default: 0.1.
    seconds
        Training budget in seconds.
    tokens
        Training budget in tokens, those of the old text included.
    passes
        Training budget in passes over the new text. Default: as docs/adaptation.md says.
    patience
        Stop after this many evaluations in a row without a new best; 0: never early.
    lr
        Learning rate of the dense blocks or layers.
    row_lr
        Learning rate of embedding and output rows.
    batch
        Sequences in a step, over all workers. Default: 16, fewer for a short text.
    seed
        Everything random follows from it.
    threads
        Compute threads of each worker; 0: the cores, shared out evenly.
    workers
        Workers on this machine.
    device
        Where to compute; auto: CUDA where there is one, else the CPU.
    exchange
        How several workers agree.
    codec
        How numbers travel between workers.
    step
        Which step of the run to adapt. Default: the one with the best validation.
    resume
        Continue the adaptation that is in --out, with its own settings.

    Examples
    --------
    thinwire adapt run letters.txt --out run-letters --new-words 1000
    thinwire adapt run letters.txt --out run-letters --method layers --mix old.txt
    """
    from thinwire.adapt.adapt import adapt as adapt_run
    from thinwire.adapt.options import AdaptOptions
    from thinwire.console import console

    account = adapt_run(
        run,
        text,
        out,
        AdaptOptions(
            method=method,
            mix_ratio=mix_ratio,
            new_words=new_words,
            input_layers=input_layers,
            valid=valid,
            seconds=seconds,
            tokens=tokens,
            passes=passes,
            patience=patience,
            lr=lr,
            row_lr=row_lr,
            batch=batch,
            seed=seed,
            threads=threads,
            workers=workers,
            device=device,
            exchange=exchange,
            codec=codec,
        ),
        mix_with=mix,
        step=step,
        resume=resume,
    )
    if as_json:
        print(json.dumps(account.to_json()))
    console.print(account.table())
