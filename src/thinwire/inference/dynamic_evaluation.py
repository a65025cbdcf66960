"""Dynamic evaluation: a copy of the model learns from the text while it is evaluated on it.

The method is that of Krause, Kahembwe, Murray, Renals 2018 (arXiv 1709.07432) in its simple form:
plain gradient descent, with a lower learning rate for dense blocks than for rows. Rates are not
scaled by the gradients of the training.

1. **Score** a chunk of the text, in text order, by the exact softmax.
2. **Learn**: take one step on the same chunk, on its exact loss.
3. **Decay**: move the touched parameters a part of the way back to their trained values.

So every token is scored before the copy learns from it.

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

# The learning rate of blocks, as a part of that of rows. Every step updates a block, but a row only
# if its word occurs.
BLOCK_SHARE = 0.03


@dataclass(frozen=True, kw_only=True)
class DynamicEvaluation:
    """Settings of dynamic evaluation."""

    chunk_tokens: int = 20
    """Number of tokens of a chunk, which is scored and then learned from in one step."""
    rate: float = 1.0
    """Learning rate of the rows of the embedding and the output."""
    decay: float = 0.001
    """The part of the way back to its trained value that every step moves a touched parameter."""

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
        model: a trained model; it is not changed.
        settings: how the copy learns.
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
        """Yield what `runs.evaluation.logprobs` yields, and learn from each piece after it.

        Args:
            ids: the token ids of a text.
            spans: (begin, end) of the parts to score, in text order.
            eos_id: the end-of-line token.
            window: number of tokens that a body without a state sees at a time.
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
    """The exact perplexity of a text as one stream, by the model and by a copy that learns.

    Args:
        model: a trained model; it is not changed.
        ids: the token ids of a text.
        settings: how the copy learns.
        eos_id: the end-of-line token, which is read before the stream.
        unk_id: the unknown word, if the vocabulary has one.
        data: `context` says whether the state is reset at each line, `length` how many tokens a
            body without a state sees at a time.
        advance: called with the number of tokens that the copy has scored since the last call.

    Raises:
        UserError: the text has no tokens.
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
