"""`thinwire next`."""

from __future__ import annotations

import json
from itertools import chain, islice
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from thinwire.cli.flags import Adapter, AsJson, Device, Step, Threads
from thinwire.errors import UserError

if TYPE_CHECKING:
    from thinwire.inference.candidates import Candidate

# The number of prompts of a file that are read and answered at a time.
PROMPTS_AT_A_TIME = 1024


def next_words(
    run: Path,
    /,
    *,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True, metavar="TEXT")] = "",
    prompts: Annotated[str | None, Parameter(allow_leading_hyphen=True, metavar="FILE")] = None,
    top: int = 10,
    words_only: Annotated[bool, Parameter(negative="")] = False,
    step: Step = None,
    adapter: Adapter = None,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Print the most probable next words.

    For each word, one line is printed: the word, its natural log-probability and its probability,
    with tabs between them. The search is exact: every word of the vocabulary is considered, and
    probabilities are normalised over all of them. The end of the line and the unknown word are
    tokens like any other.

    Parameters
    ----------
    run
        A run folder.
    prompt
        The text before the word. Default: empty, which is the beginning of a line.
    prompts
        UTF-8 text with one prompt per line, or - for standard input, instead of --prompt. An empty
        line follows the words of each prompt; with --json, each prompt has a line of its own.
    top
        Number of words.
    words_only
        Leave out the end of the line and the unknown word.
    as_json
        Print a JSON object with the keys prompt and candidates; each candidate has the keys word,
        id and logprob.

    Examples
    --------
    thinwire next run --prompt "My dear" --top 5
    thinwire next run --prompts prompts.txt --words-only --json
    """
    if prompts is not None and prompt:
        raise UserError("--prompts takes the prompts from a file: leave out --prompt")

    from thinwire.data.sources import find_sources
    from thinwire.inference.load import load
    from thinwire.inference.text import read_lines

    sources = None if prompts is None else find_sources([prompts])
    model = load(run, step, adapter=adapter, device=device, threads=threads)
    show = _json if as_json else _columns
    if sources is None:
        print(show(prompt, model.next(prompt, top, words_only=words_only)))
        return
    lines = chain.from_iterable(read_lines(sources))
    while some := list(islice(lines, PROMPTS_AT_A_TIME)):
        found = model.next(some, top, words_only=words_only)
        for line, candidates in zip(some, found, strict=True):
            print(show(line, candidates), end="\n" if as_json else "\n\n")


def _columns(prompt: str, candidates: list[Candidate]) -> str:
    return "\n".join(f"{c.word}\t{c.logprob:.6f}\t{exp(c.logprob):.6f}" for c in candidates)


def _json(prompt: str, candidates: list[Candidate]) -> str:
    shown = [{"word": c.word, "id": c.id, "logprob": c.logprob} for c in candidates]
    return json.dumps({"prompt": prompt, "candidates": shown}, ensure_ascii=False)
