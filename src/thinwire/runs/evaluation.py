"""Exact, corpus-level perplexity.

The split is cut at line ends into 64 streams, each read after an end-of-line. Where it is cut
depends on the data only, so the result does not depend on a batch or chunk size. A recurrent body
carries its state over the lines of a stream. A body without a state sees windows of `data.length`
tokens; the second half of each window is scored, so every token has at least half a window of
context, except at the beginning of a stream. With `data.context = "line"` every line is a stream of
its own.

S streams in a batch, T tokens per chunk, N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thinwire.data.batches import NO_TARGET
from thinwire.data.config import DataConfig
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.models.contract import State

NUM_STREAMS = 64
MIN_STREAM_TOKENS = 256
CHUNK_TOKENS = 64
SEARCHED_TOKENS = 1 << 16
# The number of positions that are computed at a time, for streams of any length.
CHUNK_POSITIONS = NUM_STREAMS * CHUNK_TOKENS

Ids = npt.NDArray[np.unsignedinteger[Any]]
Span = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Tokens of several spans that are computed as one batch.

    Attributes:
        inputs_ST: the ids that the model has read, padded at the end.
        targets_ST: the ids that follow them; `NO_TARGET` where none is scored.
        before: the state before the inputs; None: a fresh state.
        hidden_STD: the hidden states.
        spans_S: for each row, the index of its span.
    """

    inputs_ST: Tensor
    targets_ST: Tensor
    before: State | None
    hidden_STD: Tensor
    spans_S: list[int]

    def positions(self) -> tuple[Tensor, Tensor, Tensor]:
        """hidden_ND, targets_N and span_N of the scored tokens; within a span in text order."""
        is_target_ST = self.targets_ST != NO_TARGET
        span_ST = torch.tensor(self.spans_S, device=self.targets_ST.device)[:, None]
        span_N = span_ST.expand_as(self.targets_ST)[is_target_ST]
        return self.hidden_STD[is_target_ST], self.targets_ST[is_target_ST], span_N


@dataclass(frozen=True)
class Evaluation:
    """The result of an exact evaluation.

    Attributes:
        ppl: perplexity, exp of the mean negative log-probability over all scored tokens.
        ppl_known: the same without unknown words in the average.
        tokens_scored: number of tokens, ends of lines included.
        tokens_unknown: number of these tokens that are unknown words.
        nats: sum of the negative natural log-probabilities.
    """

    ppl: float
    ppl_known: float
    tokens_scored: int
    tokens_unknown: int
    nats: float

    def bits_per_character(self, num_characters: int) -> float:
        """Bits per character of the raw text, which has `num_characters` characters."""
        return self.nats / log(2) / num_characters


def evaluate(
    model: LanguageModel,
    ids: Ids,
    *,
    eos_id: int,
    unk_id: int | None,
    data: DataConfig,
    max_tokens: int = 0,
    advance: Callable[[int], object] = lambda num_tokens: None,
) -> Evaluation:
    """The exact perplexity of `ids`, or of about `max_tokens` of them spread over the text.

    Args:
        model: a trained model.
        ids: the token ids of a split.
        eos_id: the end-of-line token, which is read before each stream and ends each line.
        unk_id: the unknown word, if the vocabulary has one.
        data: `context` says whether the state is reset at each line, `length` how many tokens a
            body without a state sees at a time.
        max_tokens: score about this many tokens; 0: all.
        advance: called with the number of tokens scored since the last call.

    Raises:
        UserError: the split has no tokens.
    """
    spans = spans_of(ids, eos_id, data, max_tokens)
    tally = Tally(unk_id, advance)
    for logprob_N, targets_N, _ in logprobs(model, ids, spans, eos_id=eos_id, window=data.length):
        tally.add(logprob_N, targets_N)
    return tally.evaluation()


class Tally:
    """Adds up log-probabilities to an `Evaluation`.

    Args:
        unk_id: the unknown word, if the vocabulary has one.
        advance: called with the number of tokens scored since the last call.
    """

    def __init__(
        self, unk_id: int | None, advance: Callable[[int], object] = lambda num_tokens: None
    ) -> None:
        self.unk_id, self.advance = unk_id, advance
        self.nats = torch.zeros((), dtype=torch.float64)
        self.nats_unknown = torch.zeros((), dtype=torch.float64)
        self.scored = self.unknown = 0

    def add(self, logprob_N: Tensor, targets_N: Tensor) -> None:
        """Count some tokens: their natural-log probabilities (float64) and ids, on the CPU."""
        self.nats -= logprob_N.sum()
        self.scored += len(targets_N)
        if self.unk_id is not None:
            is_unknown_N = targets_N == self.unk_id
            self.nats_unknown -= logprob_N[is_unknown_N].sum()
            self.unknown += int(is_unknown_N.sum())
        self.advance(len(targets_N))

    def evaluation(self) -> Evaluation:
        """The result for the tokens so far."""
        nats, known = float(self.nats), self.scored - self.unknown
        nats_known = float(self.nats - self.nats_unknown)
        return Evaluation(
            ppl=_exp(nats / self.scored),
            ppl_known=_exp(nats_known / known) if known else float("nan"),
            tokens_scored=self.scored,
            tokens_unknown=self.unknown,
            nats=nats,
        )


def spans_of(ids: Ids, eos_id: int, data: DataConfig, max_tokens: int = 0) -> list[Span]:
    """The parts (begin, end) of a split to score, each from a fresh state; see `evaluate`.

    Raises:
        UserError: the split has no tokens.
    """
    if len(ids) == 0:
        raise UserError("there is nothing to evaluate: the text has no tokens")
    if data.context == "line":
        return _lines(ids, eos_id, max_tokens)
    return streams(ids, eos_id, max_tokens)


def lines_in_order(ids: Ids, eos_id: int) -> list[Span]:
    """The span of every line of a text, in text order."""
    return list(pairwise([0, *(int(end) for end in _line_ends(ids, eos_id))]))


def logprobs(
    model: LanguageModel, ids: Ids, spans: list[Span], *, eos_id: int, window: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The natural-log probability of every token of some spans, each started from end-of-line.

    Neighbouring spans are computed as one batch, so spans of similar length should be neighbours.
    Up to rounding, the result does not depend on their order.

    Args:
        model: a trained model.
        ids: the token ids of a text.
        spans: (begin, end) of the parts to score, none empty.
        eos_id: the end-of-line token.
        window: tokens that a body without a state sees at a time.

    Yields:
        logprob_N (float64), targets_N and span_N (the index of the span that each is in), on the
        CPU; together every token of every span once.
    """
    for piece in walk(model, ids, spans, eos_id=eos_id, window=window):
        hidden_ND, targets_N, span_N = piece.positions()
        logprob_N = model.output.logprob(hidden_ND, targets_N)
        yield logprob_N.cpu().to(torch.float64), targets_N.cpu(), span_N.cpu()


def walk(
    model: LanguageModel,
    ids: Ids,
    spans: list[Span],
    *,
    eos_id: int,
    window: int,
    chunk_tokens: int | None = None,
) -> Iterator[Piece]:
    """The hidden states of every token of some spans, as `logprobs` scores them.

    Args:
        model: a trained model.
        ids: the token ids of a text.
        spans: (begin, end) of the parts to read, none empty.
        eos_id: the end-of-line token.
        window: number of tokens that a body without a state sees at a time.
        chunk_tokens: the largest number of positions of a piece (a window is never cut); pieces
        come
            in the order of the spans. None: sizes that are fast.
    """
    chunk, positions = chunk_tokens or CHUNK_TOKENS, chunk_tokens or CHUNK_POSITIONS
    if model.body.carries_state:
        return _carried(model, ids, spans, eos_id, chunk, positions)
    return _windows(model, ids, spans, eos_id, window, max(1, window // 2), positions)


def streams(ids: Ids, eos_id: int, max_tokens: int = 0) -> list[Span]:
    """Cut a text at line ends into 64 streams of similar length.

    With `max_tokens`, only the beginning of each stream is kept.
    """
    num_streams = max(1, min(NUM_STREAMS, len(ids) // MIN_STREAM_TOKENS))
    even = (np.arange(1, num_streams) * len(ids) // num_streams).tolist()
    cuts = sorted({0, len(ids), *(_line_end(ids, eos_id, at) for at in even)})
    longest = -(-max_tokens // num_streams) or len(ids)
    return [(a, min(b, a + longest)) for a, b in pairwise(cuts)]


def _line_end(ids: Ids, eos_id: int, at: int) -> int:
    """The first line end at or after position `at`, found without a copy of the text."""
    for first in range(at - 1, len(ids), SEARCHED_TOKENS):
        found = np.flatnonzero(np.asarray(ids[first : first + SEARCHED_TOKENS]) == eos_id)
        if len(found):
            return first + int(found[0]) + 1
    return len(ids)


def _lines(ids: Ids, eos_id: int, max_tokens: int) -> list[Span]:
    """The span of every line, or of every n-th line, the shortest first."""
    ends = _line_ends(ids, eos_id)
    every = max(1, len(ids) // max_tokens) if max_tokens else 1
    lines = list(pairwise([0, *(int(end) for end in ends)]))[::every]
    return sorted(lines, key=lambda line: (line[1] - line[0], line[0]))


def _line_ends(ids: Ids, eos_id: int) -> npt.NDArray[np.int64]:
    ends = np.flatnonzero(np.asarray(ids) == eos_id) + 1
    return np.append(ends[ends < len(ids)], len(ids))


def _carried(
    model: LanguageModel, ids: Ids, spans: list[Span], eos_id: int, chunk: int, positions: int
) -> Iterator[Piece]:
    """Read spans in batches, `chunk` tokens at a time, with the state carried over."""
    for group in _groups([min(b - a, chunk) for a, b in spans], positions):
        going = list(group)
        longest = max(spans[i][1] - spans[i][0] for i in group)
        state: State | None = None
        for done in range(0, longest, chunk):
            # A span that has ended leaves the batch; the others keep their state.
            rows = [row for row, i in enumerate(going) if spans[i][0] + done < spans[i][1]]
            if state is not None and len(rows) < len(going):
                state = tuple(s[rows] for s in state)
            going = [going[row] for row in rows]
            left = [(spans[i][0] + done, spans[i][1]) for i in going]
            pieces = [(a, min(b, a + chunk)) for a, b in left]
            inputs_ST, targets_ST = _cut(model, ids, pieces, eos_id, first=done == 0)
            before = state
            hidden_STD, state = model.hidden(inputs_ST, before)
            yield Piece(inputs_ST, targets_ST, before, hidden_STD, going)


def _windows(
    model: LanguageModel,
    ids: Ids,
    spans: list[Span],
    eos_id: int,
    window: int,
    stride: int,
    positions: int,
) -> Iterator[Piece]:
    """Windows of the spans, `stride` apart; each token is scored once."""
    windows = [
        (span, start, min(b, start + window), start + (0 if start == a else window - stride))
        for span, (a, b) in enumerate(spans)
        for start in range(a, max(a + 1, b - (window - stride)), stride)
    ]
    for group in _groups([b - a for _, a, b, _ in windows], positions):
        some = windows[group.start : group.stop]
        inputs_ST, targets_ST = _cut(model, ids, [(a, b) for _, a, b, _ in some], eos_id)
        for row, (span, start, _, score_from) in enumerate(some):
            targets_ST[row, : score_from - start] = NO_TARGET
            if start == spans[span][0]:
                inputs_ST[row, 0] = eos_id
        hidden_STD, _ = model.hidden(inputs_ST, None)
        yield Piece(inputs_ST, targets_ST, None, hidden_STD, [span for span, *_ in some])


def _groups(lengths: list[int], positions: int) -> Iterator[range]:
    """Yield groups of neighbours that have at most `positions` positions when padded."""
    first = longest = 0
    for i, length in enumerate(lengths):
        if i > first and max(longest, length) * (i + 1 - first) > positions:
            yield range(first, i)
            first, longest = i, 0
        longest = max(longest, length)
    yield range(first, len(lengths))


def _cut(
    model: LanguageModel, ids: Ids, pieces: list[Span], eos_id: int, first: bool = False
) -> tuple[Tensor, Tensor]:
    """The inputs and targets of some pieces as one batch, padded at the end."""
    T = max(b - a for a, b in pieces)
    inputs_ST = np.full((len(pieces), T), eos_id, dtype=np.int64)
    targets_ST = np.full((len(pieces), T), NO_TARGET, dtype=np.int64)
    for row, (a, b) in enumerate(pieces):
        targets_ST[row, : b - a] = ids[a:b]
        inputs_ST[row, 1 : b - a] = ids[a : b - 1]
        if a > 0 and not first:
            inputs_ST[row, 0] = ids[a - 1]
    device = model.embedding.weight.device
    return torch.from_numpy(inputs_ST).to(device), torch.from_numpy(targets_ST).to(device)


def _exp(mean_nats: float) -> float:
    return exp(mean_nats) if mean_nats < 700 else float("inf")
