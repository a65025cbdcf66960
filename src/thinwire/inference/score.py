"""The exact log-probability of lines of text, and of their tokens.

Lines that each start from a fresh state are scored in pools of some thousand lines. A pool is
sorted by length, so that lines of similar length form a batch. Scores are yielded in the order of
the text. Up to rounding, a score does not depend on the other lines.

Lines whose state is carried over are scored as in an evaluation: the text is cut into up to 64
streams, which form a batch. Ids and log-probabilities are kept in files meanwhile, so memory does
not depend on the text's length.

L lines, N positions, T tokens of a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thinwire.data.corpus import narrowest_dtype
from thinwire.data.tokenizers import Tokenizer
from thinwire.inference.dynamic_evaluation import DynamicEvaluation, Learner
from thinwire.inference.neural_cache import Histories, NeuralCache, cached_logprobs, mixed
from thinwire.language_model import LanguageModel
from thinwire.runs.evaluation import Ids, Span, logprobs, streams

# A pool has enough lines to find similar lengths, and takes little memory compared with a model.
POOL_LINES = 1 << 14
POOL_CHARACTERS = 1 << 21
# Number of tokens of a text with carried state that are read back at a time.
BLOCK_TOKENS = 1 << 18

Logprobs = npt.NDArray[np.float64]
# With a cache, or a model that learns, lines keep their order, so fewer of them are held at a time.
CACHE_LINES = 1 << 10


@dataclass(frozen=True)
class Score:
    """The log-probability of a text, and the number of its tokens.

    Attributes:
        logprob: natural logarithm of its probability, ends of lines included.
        num_tokens: number of tokens, ends of lines included.
        num_unknown: number of these tokens that are unknown words.
    """

    logprob: float
    num_tokens: int
    num_unknown: int

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        mean_nats = -self.logprob / self.num_tokens
        return exp(mean_nats) if mean_nats < 700 else float("inf")


@dataclass(frozen=True)
class LineLogprobs:
    """A line with the natural-log probability of each of its tokens.

    Attributes:
        ids_T: its tokens, the end of the line included.
        logprob_T: their log-probabilities.
    """

    ids_T: npt.NDArray[Any]
    logprob_T: Logprobs

    def score(self, unk_id: int | None) -> Score:
        """The score of the whole line."""
        num_unknown = 0 if unk_id is None else int((self.ids_T == unk_id).sum())
        return Score(float(self.logprob_T.sum()), len(self.ids_T), num_unknown)


def score_lines(
    model: LanguageModel, tokenizer: Tokenizer, lines: Iterable[str], *, window: int
) -> Iterator[Score]:
    """Yield the score of each line, in the order of the lines; each starts from a fresh state.

    Args:
        model: a trained model.
        tokenizer: its tokenizer.
        lines: text without line ends; for an empty line, the line's end is scored.
        window: number of tokens that a body without a state sees at a time.
    """
    for line in line_logprobs(model, tokenizer, lines, window=window):
        yield line.score(tokenizer.unk_id)


def line_logprobs(
    model: LanguageModel, tokenizer: Tokenizer, lines: Iterable[str], *, window: int
) -> Iterator[LineLogprobs]:
    """The same as `score_lines`, with the log-probability of every token."""
    for pool in _pools(lines):
        yield from _score_pool(model, tokenizer, pool, window)


def text_logprobs(
    model: LanguageModel,
    tokenizer: Tokenizer,
    blocks: Iterable[list[str]],
    *,
    window: int,
    advance: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[LineLogprobs]:
    """The same as `line_logprobs`, with the state carried over from line to line.

    The whole text is read and scored before the first line is yielded.

    Args:
        model: a trained model.
        tokenizer: its tokenizer.
        blocks: the lines of the text, in lists of some lines each.
        window: number of tokens that a body without a state sees at a time.
        advance: called with the number of tokens scored so far and the number of all tokens.
    """
    dtype = narrowest_dtype(tokenizer.vocab_size)
    with TemporaryDirectory(prefix="thinwire-score-") as folder:
        ids_file = Path(folder) / "ids"
        with ids_file.open("wb") as file:
            for lines in blocks:
                np.concatenate(tokenizer.encode_lines(lines)).astype(dtype).tofile(file)
        if ids_file.stat().st_size == 0:
            return
        ids_N: Ids = np.memmap(ids_file, dtype, "r")
        logprob_N: Logprobs = np.memmap(Path(folder) / "logprobs", np.float64, "w+", 0, ids_N.shape)
        spans = streams(ids_N, tokenizer.eos_id)
        for done in fill(logprob_N, model, ids_N, spans, tokenizer.eos_id, window):
            advance(done, len(ids_N))
        begin = 0
        for first in range(0, len(ids_N), BLOCK_TOKENS):
            ends = np.flatnonzero(ids_N[first : first + BLOCK_TOKENS] == tokenizer.eos_id) + 1
            for end in (first + ends).tolist():
                yield LineLogprobs(np.array(ids_N[begin:end]), np.array(logprob_N[begin:end]))
                begin = end


def _pools(lines: Iterable[str]) -> Iterator[list[str]]:
    pool: list[str] = []
    num_characters = 0
    for line in lines:
        pool.append(line)
        num_characters += len(line)
        if len(pool) >= POOL_LINES or num_characters >= POOL_CHARACTERS:
            yield pool
            pool, num_characters = [], 0
    if pool:
        yield pool


def _score_pool(
    model: LanguageModel, tokenizer: Tokenizer, lines: list[str], window: int
) -> Iterator[LineLogprobs]:
    encoded = tokenizer.encode_lines(lines)
    shortest_first = sorted(range(len(lines)), key=lambda line: len(encoded[line]))
    spans = list(
        pairwise(np.cumsum([0, *(len(encoded[line]) for line in shortest_first)]).tolist())
    )
    ids_N = np.concatenate([encoded[line] for line in shortest_first])
    logprob_N = np.empty(len(ids_N))
    for _ in fill(logprob_N, model, ids_N, spans, tokenizer.eos_id, window):
        pass
    span_of = dict(zip(shortest_first, spans, strict=True))
    for line, ids_T in enumerate(encoded):
        yield LineLogprobs(ids_T, logprob_N[slice(*span_of[line])])


def fill(
    logprob_N: Logprobs,
    model: LanguageModel,
    ids_N: Ids,
    spans: list[Span],
    eos_id: int,
    window: int,
) -> Iterator[int]:
    """Write the log-probability of every token of the spans into `logprob_N`.

    Yields the number of tokens done so far. `logprob_N[i]` is that of token `ids_N[i]`.
    """
    # The tokens of a span arrive in order; those of several spans arrive in one chunk.
    next_of_span = np.array([begin for begin, _ in spans])
    done = 0
    for logprob_n, _, span_n in logprobs(model, ids_N, spans, eos_id=eos_id, window=window):
        spans_S, first_S, number_S = np.unique(
            span_n.numpy(), return_index=True, return_counts=True
        )
        index_n = np.arange(len(span_n)) + np.repeat(next_of_span[spans_S] - first_S, number_S)
        logprob_N[index_n] = logprob_n.numpy()
        next_of_span[spans_S] += number_S
        done += len(span_n)
        yield done


def score_lines_cached(
    model: LanguageModel,
    tokenizer: Tokenizer,
    lines: Iterable[str],
    cache: NeuralCache,
    *,
    window: int,
) -> Iterator[tuple[Score, Score]]:
    """Yield two scores of each line: without and with a neural cache of all lines before it."""
    histories, lines = Histories(cache.size, shared=True), iter(lines)
    while encoded := tokenizer.encode_lines(list(islice(lines, CACHE_LINES))):
        spans = list(pairwise(np.cumsum([0, *map(len, encoded)]).tolist()))
        plain_L = torch.zeros(len(encoded), dtype=torch.float64)
        cached_L = torch.zeros(len(encoded), dtype=torch.float64)
        for logprob_N, cache_GN, _, span_N in cached_logprobs(
            model,
            np.concatenate(encoded),
            spans,
            histories,
            [cache.theta],
            eos_id=tokenizer.eos_id,
            window=window,
        ):
            plain_L.index_add_(0, span_N, logprob_N)
            cached_L.index_add_(0, span_N, mixed(logprob_N, cache_GN[0], cache.weight))
        yield from _scores(encoded, plain_L, cached_L, tokenizer.unk_id)


def score_lines_dynamic(
    model: LanguageModel,
    tokenizer: Tokenizer,
    lines: Iterable[str],
    settings: DynamicEvaluation,
    *,
    window: int,
) -> Iterator[tuple[Score, Score]]:
    """Yield two scores of each line: by the model, and by a copy that learns from earlier lines."""
    learner, lines, eos_id = Learner(model, settings), iter(lines), tokenizer.eos_id
    while encoded := tokenizer.encode_lines(list(islice(lines, CACHE_LINES))):
        spans = list(pairwise(np.cumsum([0, *map(len, encoded)]).tolist()))
        ids_N, sums = np.concatenate(encoded), []
        for found in (
            logprobs(model, ids_N, spans, eos_id=eos_id, window=window),
            learner.logprobs(ids_N, spans, eos_id=eos_id, window=window),
        ):
            sums.append(torch.zeros(len(encoded), dtype=torch.float64))
            for logprob_N, _, span_N in found:
                sums[-1].index_add_(0, span_N, logprob_N)
        plain_L, learned_L = sums
        yield from _scores(encoded, plain_L, learned_L, tokenizer.unk_id)


def _scores(
    encoded: list[npt.NDArray[Any]], plain_L: Tensor, other_L: Tensor, unk_id: int | None
) -> Iterator[tuple[Score, Score]]:
    """Yield the two scores of each line."""
    for ids_T, plain, other in zip(encoded, plain_L.tolist(), other_L.tolist(), strict=True):
        num_unknown = 0 if unk_id is None else int((ids_T == unk_id).sum())
        yield Score(plain, len(ids_T), num_unknown), Score(other, len(ids_T), num_unknown)
