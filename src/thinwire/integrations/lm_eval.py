"""A trained model for lm-eval (the language model evaluation harness): its class `LM`.

    lm_eval.simple_evaluate(model=HarnessLM(thinwire.load("run")), tasks=["lambada_openai"])

Log-probabilities are natural and exact. A text starts at the beginning of a line.
"""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import LM

from thinwire.inference.decoding import read_prompt
from thinwire.inference.trained_model import TrainedModel
from thinwire.runs.evaluation import logprobs

MAX_TOKENS = 256  # the largest number of tokens to generate, if a request does not say it


class HarnessLM(LM):
    """A trained model with the interface that lm-eval calls.

    Args:
        model: a trained model, from `thinwire.load`.
    """

    def __init__(self, model: TrainedModel) -> None:
        LM.__init__(self)
        self._model = model

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """For each (context, continuation): ln p, and whether greedy decoding would generate it."""
        return [self._continuation(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """ln p of each text, which starts at the beginning of a line; its last line has no end."""
        return [self._whole(request.args[0]) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The continuation of each context up to a stop string; greedy without `do_sample`."""
        return [self._written(*request.args) for request in requests]

    def _continuation(self, context: str, continuation: str) -> tuple[float, bool]:
        before = read_prompt(self._model.tokenizer, context)
        ids = read_prompt(self._model.tokenizer, context + continuation)[len(before) :]
        state, nats, is_greedy = self._model.start(context), 0.0, True
        for id in ids:
            logprob_V = self._model.distribution(state)[0]
            nats += float(logprob_V[id])
            is_greedy &= int(logprob_V.argmax()) == id
            state = self._model.advance(state, torch.tensor([id]))
        return nats, is_greedy

    def _whole(self, text: str) -> float:
        tokenizer, data = self._model.tokenizer, self._model.run.config.data
        ids = np.array(read_prompt(tokenizer, text), dtype=np.uint32)
        if not len(ids):
            return 0.0
        ends = [0, len(ids)]
        if data.context == "line":  # the state is reset at each line
            ends = sorted({*ends, *(np.flatnonzero(ids == tokenizer.eos_id) + 1).tolist()})
        spans = [(begin, end) for begin, end in pairwise(ends) if end > begin]
        found = logprobs(self._model.model, ids, spans, eos_id=tokenizer.eos_id, window=data.length)
        return sum(float(logprob_N.sum()) for logprob_N, _, _ in found)

    def _written(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        temperature = options.get("temperature", 1.0) if options.get("do_sample") else 0.0
        pieces = self._model.stream(
            context, tokens=options.get("max_gen_toks", MAX_TOKENS), temperature=temperature
        )
        text = ""
        for piece in islice(pieces, 1, None):  # the first one is the prompt
            text += piece
            ends = [end for stop in stops if stop and (end := text.find(stop)) >= 0]
            if ends:
                return text[: min(ends)]
        return text
