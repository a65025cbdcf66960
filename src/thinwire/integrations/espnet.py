"""A scorer for ESPnet's beam search: `BatchScorerInterface`.

    scorers["lm"] = Scorer(thinwire.load("run"))
    weights["lm"] = 0.6

The recogniser's token ids have to be the model's: prepare the text with its token list as
`--tokenizer tokens.txt`.
"""

from __future__ import annotations

from typing import Any

import torch
from espnet.nets.scorer_interface import BatchScorerInterface
from torch import Tensor

from thinwire.inference.decoding import select, stack
from thinwire.inference.trained_model import TrainedModel
from thinwire.models.contract import State


class Scorer(BatchScorerInterface):
    """The natural-log probabilities of all next tokens, exact.

    Args:
        model: a trained model, from `thinwire.load`.
    """

    def __init__(self, model: TrainedModel) -> None:
        self._model = model

    def init_state(self, x: Any) -> None:
        """The state before anything has been read."""

    def score(self, y: Tensor, state: State | None, x: Any) -> tuple[Tensor, State]:
        """`[V]` after the prefix `y`, which begins with the start token, and the state after it."""
        logprob_BV, after = self.batch_score(y[None], [state], None)
        return logprob_BV[0], after[0]

    def batch_score(
        self, ys: Tensor, states: list[State | None], xs: Any
    ) -> tuple[Tensor, list[State]]:
        """The same as `score` for several prefixes of the same length, `[B, V]`."""
        read = [
            self._begin(y) if state is None else state for y, state in zip(ys, states, strict=True)
        ]
        # States made by `_begin` have read the whole prefix already.
        going = [row for row, state in enumerate(states) if state is not None]
        if going:
            advanced = self._model.advance(stack([read[row] for row in going]), ys[going, -1])
            for index, row in enumerate(going):
                read[row] = select(advanced, [index])
        logprob_BV = self._model.distribution(stack(read))
        return logprob_BV.to(ys.device), read

    def _begin(self, y: Tensor) -> State:
        state = self._model.start()  # has read the start token
        for id in y[1:].tolist():
            state = self._model.advance(state, torch.tensor([id]))
        return state
