"""Dynamic evaluation: a model that learns from the text that it is measured on, as it reads.

Krause, Kahembwe, Murray, Renals 2018 (arXiv 1709.07432), in its plain form: gradient descent, with
a lower rate for dense blocks than for rows, in place of rates scaled by gradients of the training.

1. **Score** a chunk of the text, in text order, by the exact softmax.
2. **Learn**: one step on the same chunk by its exact loss.
3. **Decay**: the touched parameters go a part of the way back to their trained values.

So every token is scored before anything is learned from it. The one that learns is a copy.

N positions, R rows touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from thinwire.data.batches import Batch
from thinwire.data.config import DataConfig
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.loss.full import FullSoftmax
from thinwire.loss.output import SoftmaxOutput
from thinwire.optim.rowwise import RowSGD
from thinwire.optim.updater import Updater, take_gradients
from thinwire.runs.evaluation import (
    Evaluation,
    Ids,
    Piece,
    Span,
    Tally,
    lines_in_order,
    logprobs,
    walk,
)

# A block is in every gradient, a row in those of its word.
BLOCK_SHARE = 0.03


@dataclass(frozen=True, kw_only=True)
class DynamicEvaluation:
    """How a model learns while it is measured."""

    chunk_tokens: int = 20
    """Tokens that are scored, then learned from in one step."""
    rate: float = 1.0
    """The rate of gradient descent on rows of the embedding and the output."""
    decay: float = 0.001
    """The part of the way back to its trained value that every step takes a touched parameter."""

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise UserError(
                f"dynamic evaluation learns from {self.chunk_tokens} tokens at a time, and must "
                "from 1 or more"
            )
        if not (self.rate >= 0 and isfinite(self.rate)):
            raise UserError(
                f"the rate of dynamic evaluation is {self.rate:g}, and must be 0 or more"
            )
        if not 0 <= self.decay <= 1:
            raise UserError(
                f"the decay of dynamic evaluation is {self.decay:g}, and must lie in 0 to 1"
            )


class Learner:
    """A copy of a model that learns.

    Args:
        model: a trained model, which stays as it is.
        settings: how it learns.
    """

    def __init__(self, model: LanguageModel, settings: DynamicEvaluation) -> None:
        self.model, self.settings = deepcopy(model), settings
        self._tables, self._blocks = self.model.tables(), self.model.blocks()
        self._trained = {n: p.detach().clone() for n, p in {**self._tables, **self._blocks}.items()}
        self._steps = 0
        if isinstance(self.model.output, SoftmaxOutput):
            self.model.output.criterion = FullSoftmax()
        rows = RowSGD(self._tables.values(), settings.rate)
        dense = torch.optim.SGD([*self._blocks.values()], BLOCK_SHARE * settings.rate)
        self._updater = Updater(self._tables, self._blocks, rows, dense)

    def logprobs(
        self, ids: Ids, spans: list[Span], *, eos_id: int, window: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What `runs.evaluation.logprobs` yields, by a model that learns from piece to piece.

        Args:
            ids: a text.
            spans: what is to be scored, in text order.
            eos_id: the end-of-line token.
            window: tokens that a body without a state sees at a time.
        """
        chunk_tokens = self.settings.chunk_tokens
        for piece in walk(
            self.model, ids, spans, eos_id=eos_id, window=window, chunk_tokens=chunk_tokens
        ):
            hidden_ND, targets_N, span_N = piece.positions()
            logprob_N = self.model.output.logprob(hidden_ND, targets_N)
            yield logprob_N.cpu().to(torch.float64), targets_N.cpu(), span_N.cpu()
            self._learn(piece, len(targets_N))

    def _learn(self, piece: Piece, num_targets: int) -> None:
        before_BP, state = self.model.taken_apart(piece.before)
        batch = Batch(piece.inputs_ST, piece.targets_ST, None, num_targets, before_BP)
        task = self.model.touch(batch, self._steps)
        rows = self._updater.rows(task.touched)
        total, _ = self.model.loss(task, rows, state, None)
        (total / num_targets).backward()
        self._updater.apply(task.touched, take_gradients(rows), take_gradients(self._blocks))
        self._decay(task.touched.rows)
        self._steps += 1

    @torch.no_grad()
    def _decay(self, rows: Mapping[str, Tensor | None]) -> None:
        decay = self.settings.decay
        for name, block in self._blocks.items():
            block.lerp_(self._trained[name], decay)
        for name, ids_R in rows.items():
            table, trained = self._tables[name], self._trained[name]
            if ids_R is None:
                table.lerp_(trained, decay)
            else:
                table[ids_R] = table[ids_R].lerp(trained[ids_R], decay)


def evaluate_dynamic(
    model: LanguageModel,
    ids: Ids,
    settings: DynamicEvaluation,
    *,
    eos_id: int,
    unk_id: int | None,
    data: DataConfig,
    advance: Callable[[int], object] = lambda num_tokens: None,
) -> tuple[Evaluation, Evaluation]:
    """The exact perplexity of a text as one stream: of the model as it is, and as it learns.

    Args:
        model: a trained model, which stays as it is.
        ids: a text.
        settings: how the copy learns.
        eos_id: the end-of-line token, with which the stream starts.
        unk_id: the unknown word, if the vocabulary has one.
        data: how the model was trained: afresh at each line or not, and how many tokens a body
            without a state sees at a time.
        advance: hears of the tokens scored by the copy, as they are.

    Raises:
        UserError: a text without tokens.
    """
    if len(ids) == 0:
        raise UserError("there is nothing to evaluate: the text has no tokens")
    spans = lines_in_order(ids, eos_id) if data.context == "line" else [(0, len(ids))]
    plain, dynamic = Tally(unk_id), Tally(unk_id, advance)
    for tally, found in (
        (plain, logprobs(model, ids, spans, eos_id=eos_id, window=data.length)),
        (dynamic, Learner(model, settings).logprobs(ids, spans, eos_id=eos_id, window=data.length)),
    ):
        for logprob_N, targets_N, _ in found:
            tally.add(logprob_N, targets_N)
    return plain.evaluation(), dynamic.evaluation()
