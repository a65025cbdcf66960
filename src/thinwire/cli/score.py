"""`thinwire score`."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from thinwire.inference.score import Score


def score(
    run: Path,
    file: Annotated[str, Parameter(allow_leading_hyphen=True)] = "-",
    /,
    *,
    step: int | None = None,
    adapter: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int | None = None,
) -> None:
    """Print the log-probability of each line of a text.

    For each line of the text, one line is printed: its natural log-probability, its number of
    tokens and its number of unknown words, with tabs between them. Each line starts from a fresh
    state. Its end counts as a token, so an empty line has one token. Lines from a pipe are answered
    as they arrive.

    Parameters
    ----------
    run
        A run folder.
    file
        UTF-8 text with one sentence per line. Files that end in .gz, .xz or .zst are unpacked.
        Default: standard input.
    step
        The step of the run to load. Default: the step with the best validation.
    adapter
        The name of adaptation layers made by `thinwire adapt --method layers` from this run.
    as_json
        Print one JSON object per line, with the keys logprob, num_tokens and num_unknown.
    device
        Where to compute. auto: CUDA if there is a GPU, else the CPU.
    threads
        Number of compute threads. Default: one per core.

    Examples
    --------
    thinwire score run sentences.txt
    echo "To be or not to be" | thinwire score run --json
    """
    from thinwire.data.sources import find_sources
    from thinwire.inference.load import load
    from thinwire.inference.text import read_lines

    sources = find_sources([file])
    model = load(run, step, adapter=adapter, device=device, threads=threads)
    show = _json if as_json else _columns
    for lines in read_lines(sources, wait=False):
        for found in model.score_lines(lines):
            print(show(found))
        print(end="", flush=True)


def _columns(score: Score) -> str:
    return f"{score.logprob:.6f}\t{score.num_tokens}\t{score.num_unknown}"


def _json(score: Score) -> str:
    """A log-probability that is not a finite number is null."""
    logprob = score.logprob if isfinite(score.logprob) else None
    return json.dumps(
        {"logprob": logprob, "num_tokens": score.num_tokens, "num_unknown": score.num_unknown}
    )
