"""The exact log-probability of lines of text, each on its own.

Lines are scored in pools, inside a pool the shortest first, so that what is computed side by side
has like lengths. No score depends on its neighbours, up to rounding.

L lines, N positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from math import exp

import numpy as np
import torch

from thinwire.data.tokenizers import Tokenizer
from thinwire.inference.neural_cache import Histories, NeuralCache, cached_logprobs, mixed
from thinwire.language_model import LanguageModel
from thinwire.runs.evaluation import logprobs

# A pool has lines enough to find like lengths in, and is small beside any model.
POOL_LINES = 1 << 14
POOL_CHARACTERS = 1 << 21
# With a cache, lines stay in their order, and fewer of them are held.
CACHE_LINES = 1 << 10


@dataclass(frozen=True)
class Score:
    """How probable some text is.

    Attributes:
        logprob: natural logarithm of its probability, ends of lines included.
        num_tokens: number of tokens, ends of lines included.
        num_unknown: those of them outside the vocabulary.
    """

    logprob: float
    num_tokens: int
    num_unknown: int

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        mean_nats = -self.logprob / self.num_tokens
        return exp(mean_nats) if mean_nats < 700 else float("inf")


def score_lines(
    model: LanguageModel, tokenizer: Tokenizer, lines: Iterable[str], *, window: int
) -> Iterator[Score]:
    """The score of each line, in their order; each starts from a fresh state.

    Args:
        model: a trained model.
        tokenizer: its tokenizer.
        lines: text without line ends; an empty line has the score of its end.
        window: tokens that a body without a state sees at a time.
    """
    for pool in _pools(lines):
        yield from _score_pool(model, tokenizer, pool, window)


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
) -> Iterator[Score]:
    encoded = tokenizer.encode_lines(lines)
    shortest_first = sorted(range(len(lines)), key=lambda line: len(encoded[line]))
    spans = list(
        pairwise(np.cumsum([0, *(len(encoded[line]) for line in shortest_first)]).tolist())
    )
    ids = np.concatenate([encoded[line] for line in shortest_first])
    logprob_L = torch.zeros(len(lines), dtype=torch.float64)
    for logprob_N, _, span_N in logprobs(model, ids, spans, eos_id=tokenizer.eos_id, window=window):
        logprob_L.index_add_(0, span_N, logprob_N)
    scores = dict(zip(shortest_first, logprob_L.tolist(), strict=True))
    for line, ids_T in enumerate(encoded):
        num_unknown = 0 if tokenizer.unk_id is None else int((ids_T == tokenizer.unk_id).sum())
        yield Score(scores[line], len(ids_T), num_unknown)


def score_lines_cached(
    model: LanguageModel,
    tokenizer: Tokenizer,
    lines: Iterable[str],
    cache: NeuralCache,
    *,
    window: int,
) -> Iterator[tuple[Score, Score]]:
    """The score of each line, plain and with a neural cache of all lines before, in their order."""
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
        for ids_T, plain, cached in zip(encoded, plain_L.tolist(), cached_L.tolist(), strict=True):
            num_unknown = 0 if tokenizer.unk_id is None else int((ids_T == tokenizer.unk_id).sum())
            yield Score(plain, len(ids_T), num_unknown), Score(cached, len(ids_T), num_unknown)
