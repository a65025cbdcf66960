"""`thinwire score`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from math import isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from thinwire.cli.flags import (
    Adapter,
    Arpa,
    ArpaWeight,
    AsJson,
    CacheLambda,
    CacheTheta,
    Device,
    DynamicDecay,
    DynamicRate,
    Step,
    Threads,
)
from thinwire.errors import UserError

if TYPE_CHECKING:
    from thinwire.inference.score import LineLogprobs, Score
    from thinwire.inference.score_rows import Rows, Totals
    from thinwire.inference.trained_model import TrainedModel


def score(
    run: Path,
    file: Annotated[str, Parameter(allow_leading_hyphen=True)] = "-",
    /,
    *,
    out: Path | None = None,
    context: Literal["line", "text"] = "line",
    tokens: Annotated[bool, Parameter(negative="")] = False,
    base: Literal["e", "10"] = "e",
    step: Step = None,
    adapter: Adapter = None,
    average: int | None = None,
    cache: int | None = None,
    cache_theta: CacheTheta = None,
    cache_lambda: CacheLambda = None,
    dynamic: int | None = None,
    dynamic_rate: DynamicRate = None,
    dynamic_decay: DynamicDecay = None,
    arpa: Arpa = None,
    arpa_weight: ArpaWeight = None,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Print the log-probability of each line of a text.

    For each line of the text, one line is printed: its natural log-probability, its number of
    tokens and its number of unknown words, with tabs between them. Each line starts from a fresh
    state. Its end counts as a token, so an empty line has one token. Lines from a pipe are answered
    as they arrive. Memory does not grow with the number of lines.

    Parameters
    ----------
    run
        A run folder.
    file
        UTF-8 text with one sentence per line. Files that end in .gz, .xz or .zst are unpacked.
        Default: standard input.
    out
        File to write the scores to. If it holds the scores of the first lines already, because the
        command was interrupted, they are checked against the text and the rest is added.
    context
        line: each line starts from a fresh state. text: the state carries over from line to line,
        as in `thinwire eval`, with the same total; the whole text is read before the first score.
    tokens
        Add the log-probability of each token of the line.
    base
        Base of the logarithms. 10: a last column says log10, and JSON keys begin with log10.
    average
        Print a further number per line: its log-probability by the mean of the parameters of this
        many newest checkpoints.
    cache
        Print a further number per line: its log-probability with a neural cache of this many
        positions, which remembers the lines before it.
    dynamic
        Print a further number per line: its log-probability by a copy of the model that learns from
        the lines before; it takes a step each time after this many tokens.
    as_json
        Print one JSON object per line, with the keys logprob, num_tokens and num_unknown; with
        --tokens also tokens and logprobs; with --average, --cache or --dynamic also
        logprob_average, logprob_cache or logprob_dynamic.

    Examples
    --------
    thinwire score run sentences.txt
    echo "To be or not to be" | thinwire score run --json
    thinwire score run corpus.txt.gz --out corpus.scores
    """
    from thinwire.cli.further import dynamic_evaluation, neural_cache, ngram, refuse_adapter

    asked = {
        "average": average,
        "cache": neural_cache(cache, cache_theta, cache_lambda),
        "dynamic": dynamic_evaluation(dynamic, dynamic_rate, dynamic_decay),
    }
    further = [name for name, one in asked.items() if one is not None]
    if further and (out is not None or tokens or (context, base) != ("line", "e") or arpa):
        others = "--out, --context, --tokens, --base and --arpa"
        raise UserError(f"--{further[0]} goes without {others}")
    if len(further) > 1:
        raise UserError(
            f"--{further[0]} and --{further[1]} add one number each: ask for one of them"
        )
    refuse_adapter(average, adapter)

    from thinwire.inference.arpa import check_weight

    check_weight(arpa, arpa_weight)

    from thinwire.data.sources import find_sources
    from thinwire.inference.load import load
    from thinwire.inference.score import line_logprobs
    from thinwire.inference.score_rows import Rows
    from thinwire.inference.text import read_lines

    sources = find_sources([file])
    if out is not None and out.is_dir():
        raise UserError(f"{out} is a folder: --out takes the name of a file")
    model = load(run, step, adapter=adapter, device=device, threads=threads)
    if further:
        blocks = read_lines(sources, wait=False)
        for plain, other in _pairs(model, blocks, asked):
            print(_json(plain, other, further[0]) if as_json else _columns(plain, other))
        return
    rows = Rows(model.tokenizer, as_json, tokens, base == "10")

    def mix(lines: Iterator[LineLogprobs]) -> Iterator[LineLogprobs]:
        return lines

    if arpa is not None:
        trained = model.run.config.data.context
        mix = ngram(model, arpa, arpa_weight, "line" if context == "line" else trained).mix
    if out is not None:
        _say(_to_file(model, sources, out, rows, context, mix), base, out)
        return
    if context == "text":
        for line in mix(_carried(model, read_lines(sources))):
            print(rows.row(line))
        return
    window = model.run.config.data.length
    for lines in read_lines(sources, wait=False):
        for line in mix(line_logprobs(model.model, model.tokenizer, lines, window=window)):
            print(rows.row(line))
        print(end="", flush=True)


def _pairs(
    model: TrainedModel, blocks: Iterable[list[str]], asked: Mapping[str, Any]
) -> Iterator[tuple[Score, Score]]:
    """Yield two scores of each line: the plain one, and the one that a flag asks for."""
    if (num_steps := asked["average"]) is not None:
        from thinwire.inference.load import load

        device = model.model.embedding.weight.device.type
        mean = load(model.run.path, average=num_steps, device=device)
        for lines in blocks:
            yield from zip(model.score_lines(lines), mean.score_lines(lines), strict=True)
    elif asked["cache"] is not None:
        cache = asked["cache"].resolve(model)
        yield from model.score_lines_cached(chain.from_iterable(blocks), cache)
    else:
        yield from model.score_lines_dynamic(chain.from_iterable(blocks), asked["dynamic"])


def _to_file(
    model: TrainedModel,
    sources: list[Path],
    out: Path,
    rows: Rows,
    context: str,
    mix: Callable[[Iterator[LineLogprobs]], Iterator[LineLogprobs]],
) -> Totals:
    """Score to a file, with a progress bar over tokens (context text) or bytes (context line)."""
    from thinwire.console import progress_bar
    from thinwire.data.sources import total_bytes
    from thinwire.inference.score import line_logprobs
    from thinwire.inference.score_rows import write_carried_rows, write_rows
    from thinwire.inference.text import read_lines

    with progress_bar() as progress:
        if context == "text":
            task = progress.add_task("tokens", total=None)
            lines = _carried(
                model,
                read_lines(sources),
                lambda done, total: progress.update(task, completed=done, total=total),
            )
            return write_carried_rows(out, rows, mix(lines))
        task = progress.add_task("bytes", total=total_bytes(sources))
        blocks = read_lines(sources, advance=lambda number: progress.advance(task, number))
        window = model.run.config.data.length
        return write_rows(
            out,
            rows,
            chain.from_iterable(blocks),
            lambda some: mix(line_logprobs(model.model, model.tokenizer, some, window=window)),
        )


def _carried(
    model: TrainedModel,
    blocks: Iterable[list[str]],
    advance: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[LineLogprobs]:
    from thinwire.inference.score import line_logprobs, text_logprobs

    window = model.run.config.data.length
    if model.run.config.data.context == "line":
        lines = chain.from_iterable(blocks)
        return line_logprobs(model.model, model.tokenizer, lines, window=window)
    return text_logprobs(model.model, model.tokenizer, blocks, window=window, advance=advance)


def _say(totals: Totals, base: str, out: Path) -> None:
    """Print the totals of the file on standard error."""

    from thinwire.console import print_line

    total = totals.logprob / (log(10) if base == "10" else 1.0)
    kind = "log10-probability" if base == "10" else "natural log-probability"
    before = f" ({totals.num_taken_up:,} were there before)" if totals.num_taken_up else ""
    sentence = (
        f"{out}: {totals.num_lines:,} lines{before}, {totals.num_tokens:,} tokens, "
        f"{totals.num_unknown:,} unknown, {kind} {total:,.4f}"
    )
    print_line(sentence)


def _columns(score: Score, other: Score) -> str:
    numbers = score.num_tokens, score.num_unknown
    return "\t".join(map(str, (f"{score.logprob:.6f}", *numbers, f"{other.logprob:.6f}")))


def _json(score: Score, other: Score, name: str) -> str:
    """A log-probability that is not a finite number is null."""
    record = {
        "logprob": _finite(score.logprob),
        "num_tokens": score.num_tokens,
        "num_unknown": score.num_unknown,
        f"logprob_{name}": _finite(other.logprob),
    }
    return json.dumps(record)


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None
