"""The neural cache: recent words become more probable after similar hidden states.

Grave, Joulin, Usunier 2017 (arXiv 1612.04426). At position t, with hidden state h_t, each of the
last `size` positions i < t votes for the word w_i that followed it:

    p_cache(w) = sum over i with w_i = w of v_i / sum over all i of v_i,  v_i = exp(theta h_t h_i)
    p(w) = (1 - weight) p_model(w) + weight p_cache(w)

Sums are computed in log space, so p adds up to one over the vocabulary. Before the first token, p
is p_model. Nothing is trained.

Each stream of an evaluation has a cache of its own. If the state is reset at each line (`score`,
and models that were trained on single lines), the cache is not reset: it has the lines before, in
text order.

N positions, P past positions, D width, G values of theta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, isfinite, log

import torch
from torch import Tensor

from thinwire.data.config import DataConfig
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.loss.precision import full_precision
from thinwire.runs.evaluation import (
    CHUNK_TOKENS,
    Evaluation,
    Ids,
    Span,
    Tally,
    lines_in_order,
    spans_of,
    walk,
)

# The values that are tried to tune theta and the weight, and the number of tokens for it.
THETAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
WEIGHTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
TUNING_TOKENS = 50_000
# The number of positions of one history that are looked up at a time, which bounds the memory.
TILE_POSITIONS = 128


@dataclass(frozen=True, kw_only=True)
class NeuralCache:
    """Settings of the cache: how much it remembers, and how much it counts."""

    size: int = 2000
    """Number of positions that are remembered."""
    theta: float = 1.0
    """How sharply similar hidden states are preferred; 0: all positions count alike."""
    weight: float = 0.05
    """The part of the probability that the cache gives (lambda in the paper)."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"the cache's size is {self.size}, and must be 1 or more")
        if not (self.theta >= 0 and isfinite(self.theta)):
            raise UserError(f"the cache's theta is {self.theta:g}, and must be 0 or more")
        if not 0 <= self.weight < 1:
            raise UserError(
                f"the cache's lambda is {self.weight:g}, and must be at least 0 and below 1"
            )


class History:
    """The last positions of one stream: hidden states, and the word that followed each.

    Args:
        size: number of positions that are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.hidden_PD: Tensor | None = None
        self.words_P: Tensor | None = None

    def look_up(self, hidden_ND: Tensor, targets_N: Tensor, thetas: Sequence[float]) -> Tensor:
        """Return ln p_cache(target), `[G, N]`, and remember these positions (in text order).

        It is NaN where no position is remembered yet, and -inf where none has the target.
        """
        with full_precision(hidden_ND) as (hidden_ND,):
            found = [
                self._look_up(h_nD, y_n, thetas)
                for h_nD, y_n in zip(
                    hidden_ND.split(TILE_POSITIONS), targets_N.split(TILE_POSITIONS), strict=True
                )
            ]
        return torch.cat(found, dim=1)

    def _look_up(self, h_nD: Tensor, y_n: Tensor, thetas: Sequence[float]) -> Tensor:
        if self.hidden_PD is None or self.words_P is None:
            self.hidden_PD, self.words_P = h_nD[:0], y_n[:0]
        P = len(self.words_P)
        hidden_PD = torch.cat([self.hidden_PD, h_nD])
        words_P = torch.cat([self.words_P, y_n])
        similarity_nP = h_nD @ hidden_PD.t()
        age_nP = P + torch.arange(len(y_n), device=y_n.device)[:, None]
        age_nP = age_nP - torch.arange(len(words_P), device=y_n.device)
        is_past_nP = (age_nP > 0) & (age_nP <= self.size)
        is_match_nP = is_past_nP & (words_P == y_n[:, None])
        found = []
        for theta in thetas:
            votes_nP = (theta * similarity_nP).masked_fill(~is_past_nP, -inf)
            matches_nP = votes_nP.masked_fill(~is_match_nP, -inf)
            # Both are -inf at the very first position, and their difference NaN.
            found.append(matches_nP.logsumexp(1) - votes_nP.logsumexp(1))
        self.hidden_PD, self.words_P = hidden_PD[-self.size :], words_P[-self.size :]
        return torch.stack(found)


class Histories:
    """One history for each of several streams, or one history that they share.

    Args:
        size: number of positions that each history keeps.
        shared: whether all streams share one history.
    """

    def __init__(self, size: int, *, shared: bool) -> None:
        self.size, self.shared = size, shared
        self._of_span: dict[int, History] = {}

    def look_up(
        self, hidden_ND: Tensor, targets_N: Tensor, span_N: Tensor, thetas: Sequence[float]
    ) -> Tensor:
        """ln p_cache(target), `[G, N]`, as from `History.look_up`.

        If a span has no position among these, it is over, and its history is dropped.
        """
        of_N = torch.zeros_like(span_N) if self.shared else span_N
        spans: list[int] = torch.unique(of_N).tolist()
        self._of_span = {s: self._of_span.get(s) or History(self.size) for s in spans}
        found_GN = hidden_ND.new_empty((len(thetas), len(targets_N)), dtype=torch.float32)
        for span, history in self._of_span.items():
            at_n = (of_N == span).nonzero().squeeze(1)
            found = history.look_up(hidden_ND[at_n], targets_N[at_n], thetas)
            found_GN[:, at_n] = found.to(found_GN.dtype)
        return found_GN


def mixed(logprob_N: Tensor, cache_N: Tensor, weight: float) -> Tensor:
    """ln((1 - weight) p_model + weight p_cache), in fp64; p_model where the cache is empty."""
    if weight == 0:
        return logprob_N
    both_N = torch.logaddexp(log(1 - weight) + logprob_N, log(weight) + cache_N.double())
    return torch.where(cache_N.isnan(), logprob_N, both_N)


def cached_logprobs(
    model: LanguageModel,
    ids: Ids,
    spans: list[Span],
    histories: Histories,
    thetas: Sequence[float],
    *,
    eos_id: int,
    window: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield the same as `logprobs`, with ln p_cache of each token in addition.

    Args:
        model: a trained model.
        ids: a text.
        spans: (begin, end) of the parts to score; in text order if the histories are shared.
        histories: the positions seen so far; new ones are added.
        thetas: for each of them p_cache is found.
        eos_id: the end-of-line token.
        window: tokens that a body without a state sees at a time.

    Yields:
        logprob_N (fp64), cache_GN, targets_N and span_N, on the CPU.
    """
    runs = _in_text_order(spans) if histories.shared else [range(len(spans))]
    for run in runs:
        some = spans[run.start : run.stop]
        for piece in walk(model, ids, some, eos_id=eos_id, window=window):
            hidden_ND, targets_N, span_N = piece.positions()
            cache_GN = histories.look_up(hidden_ND, targets_N, span_N, thetas)
            logprob_N = model.output.logprob(hidden_ND, targets_N).cpu().to(torch.float64)
            yield logprob_N, cache_GN.cpu(), targets_N.cpu(), span_N.cpu() + run.start


def evaluate_cached(
    model: LanguageModel,
    ids: Ids,
    cache: NeuralCache,
    *,
    eos_id: int,
    unk_id: int | None,
    data: DataConfig,
    advance: Callable[[int], object] = lambda num_tokens: None,
) -> Evaluation:
    """The same as `evaluate`, with a neural cache; see the top of this file."""
    tally = Tally(unk_id, advance)
    for logprob_N, cache_GN, targets_N in _whole(
        model, ids, cache.size, [cache.theta], eos_id, data
    ):
        tally.add(mixed(logprob_N, cache_GN[0], cache.weight), targets_N)
    return tally.evaluation()


def tuned(
    model: LanguageModel,
    ids: Ids,
    size: int,
    thetas: Sequence[float] = THETAS,
    weights: Sequence[float] = WEIGHTS,
    *,
    eos_id: int,
    data: DataConfig,
) -> NeuralCache:
    """The cache of this size with the lowest perplexity on a held-out text.

    Args:
        model: a trained model.
        ids: the text; its first 50,000 tokens are used.
        size: number of positions that are remembered.
        thetas: values of theta to try.
        weights: values of the weight to try.
        eos_id: the end-of-line token.
        data: `context` and `length` of the training; see `evaluate`.
    """
    nats = dict.fromkeys(product(thetas, weights), 0.0)
    ids = ids[:TUNING_TOKENS]
    for logprob_N, cache_GN, _ in _whole(model, ids, size, thetas, eos_id, data):
        for cache_N, theta in zip(cache_GN, thetas, strict=True):
            for weight in weights:
                nats[theta, weight] -= float(mixed(logprob_N, cache_N, weight).sum())
    theta, weight = min(nats, key=lambda setting: nats[setting])
    return NeuralCache(size=size, theta=theta, weight=weight)


def _whole(
    model: LanguageModel,
    ids: Ids,
    size: int,
    thetas: Sequence[float],
    eos_id: int,
    data: DataConfig,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield logprob_N, cache_GN and targets_N of a whole text, cut into spans as in `evaluate`."""
    by_line = data.context == "line"
    for logprob_N, cache_GN, targets_N, _ in cached_logprobs(
        model,
        ids,
        lines_in_order(ids, eos_id) if by_line else spans_of(ids, eos_id, data),
        Histories(size, shared=by_line),
        thetas,
        eos_id=eos_id,
        window=data.length,
    ):
        yield logprob_N, cache_GN, targets_N


def _in_text_order(spans: list[Span]) -> Iterator[range]:
    """Neighbours that one piece each holds whole, so that `walk` keeps their order; long ones
    alone."""
    first = 0
    for i, (a, b) in enumerate(spans):
        if b - a > CHUNK_TOKENS:
            if i > first:
                yield range(first, i)
            yield range(i, i + 1)
            first = i + 1
    if first < len(spans):
        yield range(first, len(spans))
