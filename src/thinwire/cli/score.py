"""`thinwire score`."""

from __future__ import annotations

import json
from itertools import chain
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
    cache: int | None = None,
    cache_theta: float | None = None,
    cache_lambda: float | None = None,
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
    cache
        Print a further number per line: its log-probability with a neural cache of this many
        positions, which remembers the lines before it.
    cache_theta
        How sharply the cache prefers similar hidden states. Default: 1.
    cache_lambda
        The part of the probability that the cache gives. Default: 0.05.
    as_json
        Print one JSON object per line, with the keys logprob, num_tokens and num_unknown;
        with a cache also logprob_cache.
    device
        Where to compute. auto: CUDA if there is a GPU, else the CPU.
    threads
        Number of compute threads. Default: one per core.

    Examples
    --------
    thinwire score run sentences.txt
    echo "To be or not to be" | thinwire score run --json
    """
    from thinwire.cli.cache_flags import neural_cache

    asked = neural_cache(cache, cache_theta, cache_lambda)

    from thinwire.data.sources import find_sources
    from thinwire.inference.load import load
    from thinwire.inference.text import read_lines

    sources = find_sources([file])
    model = load(run, step, adapter=adapter, device=device, threads=threads)
    show = _json if as_json else _columns
    blocks = read_lines(sources, wait=False)
    if asked is not None:
        for plain, cached in model.score_lines_cached(chain.from_iterable(blocks), asked):
            print(show(plain, cached))
        return
    for lines in blocks:
        for found in model.score_lines(lines):
            print(show(found))
        print(end="", flush=True)


def _columns(score: Score, cached: Score | None = None) -> str:
    columns = f"{score.logprob:.6f}\t{score.num_tokens}\t{score.num_unknown}"
    return columns if cached is None else f"{columns}\t{cached.logprob:.6f}"


def _json(score: Score, cached: Score | None = None) -> str:
    """A log-probability that is not a finite number is null."""
    record = {
        "logprob": _finite(score.logprob),
        "num_tokens": score.num_tokens,
        "num_unknown": score.num_unknown,
    }
    if cached is not None:
        record["logprob_cache"] = _finite(cached.logprob)
    return json.dumps(record)


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None
