"""The exact perplexity of a trained model on a split of a data folder, or on a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thinwire.console import print_line, progress_bar, warn
from thinwire.data.corpus import Corpus, file_digest, narrowest_dtype, unknown_sentence
from thinwire.data.sources import find_sources
from thinwire.errors import UserError
from thinwire.inference.arpa import Interpolation, both_logprobs, interpolated
from thinwire.inference.dynamic_evaluation import DynamicEvaluation
from thinwire.inference.neural_cache import THETAS, WEIGHTS, NeuralCache, tuned
from thinwire.inference.score import Logprobs
from thinwire.inference.text import read_lines
from thinwire.inference.trained_model import TrainedModel
from thinwire.runs.evaluation import Evaluation, Ids, Tally


@dataclass(frozen=True)
class Measured:
    """An evaluation, the text that it was made on, and further evaluations of the same text.

    Attributes:
        evaluation: the perplexities, and the number of tokens that they average over.
        source: the data folder, or the text.
        split: the split of the data folder; None for a text.
        num_characters: number of characters of the raw text, line ends included.
        cached: with a neural cache; None: not asked for.
        dynamic: as one stream, by the model, and by a copy that learns from what it has read; None:
            not asked for.
        averaged: by the average of the last steps; None: not asked for.
        ngram: by an n-gram model alone; None: not asked for.
        interpolated: by the model and the n-gram model together; None: not asked for.
    """

    evaluation: Evaluation
    source: str
    split: str | None
    num_characters: int
    cached: Evaluation | None = None
    dynamic: tuple[Evaluation, Evaluation] | None = None
    averaged: Evaluation | None = None
    ngram: Evaluation | None = None
    interpolated: Evaluation | None = None

    @property
    def bits_per_character(self) -> float:
        """Bits per character of the raw text."""
        return self.evaluation.bits_per_character(self.num_characters)


def evaluate_split(
    model: TrainedModel,
    data: Path | None,
    split: str,
    cache: NeuralCache | None = None,
    dynamic: DynamicEvaluation | None = None,
    ngram: Interpolation | None = None,
) -> Measured:
    """Evaluate on a split of `data`; None: the data folder that the model was trained on.

    Raises:
        UserError: the split is empty, or its ids are not those of the model's tokenizer.
    """
    run = model.run
    if data is None and not run.data.exists():
        raise UserError(
            f"{run.path} was trained on {run.data}, which is not there any more: "
            "name a data folder with --data, or a text with --text"
        )
    corpus = Corpus.open(data or run.data)
    if corpus.meta.tokenizer_blake2b != file_digest(run.tokenizer_file):
        raise UserError(
            f"{corpus.path} was prepared with another tokenizer than that of {run.path}, so its "
            "ids mean other words: evaluate the text itself with --text"
        )
    if corpus.meta.fingerprint != run.fingerprint:
        print_line(
            f"{corpus.path} is not what {run.path} was trained on, but has its tokenizer", "yellow"
        )
    ids = corpus.ids(split)
    if len(ids) == 0:
        raise UserError(f"the {split} split of {corpus.path} is empty")
    num_characters = corpus.meta.splits[split].characters
    return Measured(
        _evaluate(model, ids),
        str(corpus.path),
        split,
        num_characters,
        **_further(model, ids, cache, dynamic, ngram),
    )


def evaluate_text(
    model: TrainedModel,
    text: str,
    cache: NeuralCache | None = None,
    dynamic: DynamicEvaluation | None = None,
    ngram: Interpolation | None = None,
) -> Measured:
    """Evaluate on a text: a file, `-` for standard input, a folder or a glob.

    Raises:
        UserError: there is no such file, it is empty, or it is no UTF-8 text.
    """
    dtype = narrowest_dtype(model.tokenizer.vocab_size)
    ids: list[Ids] = []
    num_characters = 0
    for lines in read_lines(find_sources([text])):
        num_characters += sum(map(len, lines)) + len(lines)
        ids.append(np.concatenate(model.tokenizer.encode_lines(lines)).astype(dtype))
    if not ids:
        raise UserError(f"there is nothing to evaluate: {text} is empty")
    whole = np.concatenate(ids)
    return Measured(
        _evaluate(model, whole),
        text,
        None,
        num_characters,
        **_further(model, whole, cache, dynamic, ngram),
    )


def tuned_cache(
    model: TrainedModel, size: int, theta: float | None = None, weight: float | None = None
) -> NeuralCache:
    """The cache of this size with the lowest perplexity on the validation split of the data.

    Args:
        model: a trained model.
        size: number of positions that are remembered.
        theta: the value of theta; None: the best of a few values.
        weight: the value of the weight; None: the best of a few values.

    Raises:
        UserError: the data folder is gone, or has another tokenizer.
    """
    run = model.run
    where = f"the cache is tuned on the validation split of {run.data}, which"
    if not run.data.exists():
        raise UserError(f"{where} is not there any more: give --cache-theta and --cache-lambda")
    corpus = Corpus.open(run.data)
    if corpus.meta.tokenizer_blake2b != file_digest(run.tokenizer_file):
        raise UserError(
            f"{where} has another tokenizer by now: give --cache-theta and --cache-lambda"
        )
    found = tuned(
        model.model,
        corpus.ids("valid"),
        size,
        THETAS if theta is None else [theta],
        WEIGHTS if weight is None else [weight],
        eos_id=model.tokenizer.eos_id,
        data=run.config.data,
    )
    sentence = f"tuned on the validation split: theta {found.theta:g}, lambda {found.weight:g}"
    print_line(sentence)
    return found


def _evaluate(model: TrainedModel, ids: Ids) -> Evaluation:
    with progress_bar() as progress:
        task = progress.add_task("tokens", total=len(ids))
        found = model.evaluate(ids, lambda num_tokens: progress.advance(task, num_tokens))
    if sentence := unknown_sentence("the text", found.tokens_unknown, found.tokens_scored):
        warn(sentence)
    return found


def _cached(model: TrainedModel, ids: Ids, cache: NeuralCache | None) -> Evaluation | None:
    if cache is None:
        return None
    with progress_bar() as progress:
        task = progress.add_task("tokens, with the cache", total=len(ids))
        return model.evaluate_cached(ids, cache, lambda n: progress.advance(task, n))


def _further(
    model: TrainedModel,
    ids: Ids,
    cache: NeuralCache | None,
    dynamic: DynamicEvaluation | None,
    ngram: Interpolation | None,
) -> dict[str, Any]:
    """The further evaluations that are asked for, by their names in `Measured`."""
    by_ngram, by_both = (None, None) if ngram is None else _with_ngram(model, ids, ngram)
    return {
        "cached": _cached(model, ids, cache),
        "dynamic": _dynamic(model, ids, dynamic),
        "ngram": by_ngram,
        "interpolated": by_both,
    }


def _dynamic(
    model: TrainedModel, ids: Ids, settings: DynamicEvaluation | None
) -> tuple[Evaluation, Evaluation] | None:
    if settings is None:
        return None
    with progress_bar() as progress:
        task = progress.add_task("tokens, learning from them", total=len(ids))
        return model.evaluate_dynamic(ids, settings, lambda n: progress.advance(task, n))


def _with_ngram(
    model: TrainedModel, ids: Ids, ngram: Interpolation
) -> tuple[Evaluation, Evaluation]:
    """Evaluate by the n-gram model alone, and by both models together."""
    context = model.run.config.data.context
    own_N, ngram_N, ids_N = both_logprobs(model, ngram.arpa, ids, context)
    mixed_N = interpolated(own_N, ngram_N, ngram.weight)
    unk_id = model.tokenizer.unk_id
    return _tallied(ngram_N, ids_N, unk_id), _tallied(mixed_N, ids_N, unk_id)


def _tallied(logprob_N: Logprobs, ids_N: Ids, unk_id: int | None) -> Evaluation:
    tally = Tally(unk_id)
    tally.add(torch.from_numpy(logprob_N), torch.from_numpy(ids_N.astype(np.int64)))
    return tally.evaluation()
