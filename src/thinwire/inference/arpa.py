"""A trained model and an n-gram model from an ARPA file, interpolated token by token.

    p(w) = (1 - weight) p_model(w) + weight p_ngram(w)

The n-gram model is read by KenLM (Heafield 2011), the package of the extra `kenlm`. Its words are
the model's tokens; every line is a sentence of its own. Tokens that it does not have share the
probability of its `<unk>` evenly, so that its probabilities add up to at most one for any pair of
vocabularies.

The weight maximises the likelihood of held-out text. Expectation maximisation finds it (Jelinek &
Mercer 1980): repeatedly, the weight is set to the mean probability that a token came from the
n-gram model.

N tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite, log
from pathlib import Path
from typing import Any, Literal

import numpy as np

from thinwire.console import warn
from thinwire.data.config import DataConfig
from thinwire.data.corpus import Corpus
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.score import LineLogprobs, Logprobs, fill
from thinwire.inference.trained_model import TrainedModel
from thinwire.runs.evaluation import Ids, spans_of

HELD_OUT_TOKENS = 50_000
LARGEST_CHANGE, MOST_ROUNDS = 1e-6, 1000
END, UNKNOWN, START = "</s>", "<unk>", "<s>"


class Arpa:
    """An n-gram model over the tokens of a tokenizer.

    Args:
        file: an ARPA file, or the binary file that KenLM has made of it.
        tokenizer: the tokenizer of the trained model.

    Raises:
        UserError: the package kenlm is not installed, or it cannot read the file.
    """

    def __init__(self, file: Path, tokenizer: Tokenizer) -> None:
        self.file, self._eos_id = file, tokenizer.eos_id
        self._model = _read(file)
        words = [tokenizer.token(id) for id in range(tokenizer.vocab_size)]
        words[tokenizer.eos_id] = END
        self._words = [word if word in self._model and word != START else UNKNOWN for word in words]
        is_missing_V = np.array([word == UNKNOWN for word in self._words])
        num_missing = int(is_missing_V.sum())
        self._log_share_V = np.where(is_missing_V, log(max(1, num_missing)), 0.0)
        if num_missing > len(words) // 2:
            warn(
                f"{file} lacks {num_missing:,} of the model's {len(words):,} tokens: its words "
                "have to be written as the model's tokenizer writes them"
            )

    def logprobs(self, ids_N: Ids) -> Logprobs:
        """ln p of each token of a text that starts at the beginning of a line."""
        import kenlm

        score, begin, words = self._model.BaseScore, self._model.BeginSentenceWrite, self._words
        found_N = np.empty(len(ids_N))
        state, after = kenlm.State(), kenlm.State()
        begin(state)
        for position, id in enumerate(ids_N.tolist()):
            found_N[position] = score(state, words[id], after)
            state, after = after, state
            if id == self._eos_id:
                begin(state)
        return found_N * log(10) - self._log_share_V[ids_N]


@dataclass(frozen=True)
class Interpolation:
    """An n-gram model and its weight in the interpolation with a trained model.

    Attributes:
        arpa: the n-gram model.
        weight: the part of the probability that the n-gram model gives, from 0 to 1.
    """

    arpa: Arpa
    weight: float

    def mix(self, lines: Iterable[LineLogprobs]) -> Iterator[LineLogprobs]:
        """Yield the same lines with the interpolated probabilities."""
        for line in lines:
            ngram_T = self.arpa.logprobs(line.ids_T)
            yield LineLogprobs(line.ids_T, interpolated(line.logprob_T, ngram_T, self.weight))


def interpolation(
    model: TrainedModel,
    file: Path,
    weight: float | None,
    context: Literal["text", "line"],
    data: Path | None = None,
) -> Interpolation:
    """Read an n-gram model, and find its weight on validation text if none is given.

    Args:
        model: the trained model.
        file: the ARPA file.
        weight: from 0 to 1; None: the best weight on the validation split.
        context: text: the state is carried over the lines of the validation text; line: each line
            starts from a fresh state.
        data: the data folder with the validation text; None: the one that the model was trained on.

    Raises:
        UserError: the package kenlm or the text is missing, or the file cannot be read.
    """
    arpa = Arpa(file, model.tokenizer)
    if weight is None:
        ids_N = _held_out(model, data)
        own_N, ngram_N, _ = both_logprobs(model, arpa, ids_N, context, HELD_OUT_TOKENS)
        weight = em_weight(own_N, ngram_N)
    return Interpolation(arpa, weight)


def both_logprobs(
    model: TrainedModel,
    arpa: Arpa,
    ids_N: Ids,
    context: Literal["text", "line"],
    max_tokens: int = 0,
) -> tuple[Logprobs, Logprobs, Ids]:
    """ln p of each token of a text by the model and by the n-gram model, and these tokens.

    Args:
        model: the trained model.
        arpa: the n-gram model.
        ids_N: a text of whole lines.
        context: whether the state is carried over the lines.
        max_tokens: score about this many tokens, spread evenly over the text; 0: all.
    """
    window, eos_id = model.run.config.data.length, model.tokenizer.eos_id
    spans = spans_of(ids_N, eos_id, DataConfig(length=window, context=context), max_tokens)
    own_N = np.full(len(ids_N), np.nan)
    for _ in fill(own_N, model.model, ids_N, spans, eos_id, window):
        pass
    ngram_N = np.concatenate([arpa.logprobs(ids_N[begin:end]) for begin, end in spans])
    own_N = np.concatenate([own_N[begin:end] for begin, end in spans])
    return own_N, ngram_N, np.concatenate([ids_N[begin:end] for begin, end in spans])


def interpolated(own_N: Logprobs, ngram_N: Logprobs, weight: float) -> Logprobs:
    """ln((1 - weight) p_model + weight p_ngram)."""
    with np.errstate(divide="ignore"):  # the logarithm of a weight of 0
        mixed_N: Logprobs = np.logaddexp(np.log1p(-weight) + own_N, np.log(weight) + ngram_N)
    return mixed_N


def em_weight(own_N: Logprobs, ngram_N: Logprobs) -> float:
    """The weight of the n-gram model under which these tokens are most probable."""
    weight = 0.5
    for _ in range(MOST_ROUNDS):
        of_ngram_N = np.exp(log(weight) + ngram_N - interpolated(own_N, ngram_N, weight))
        before, weight = weight, float(of_ngram_N.mean())
        if abs(weight - before) < LARGEST_CHANGE or not 0 < weight < 1:
            break
    return weight


def check_weight(file: Path | None, weight: float | None) -> None:
    """Raises UserError: the weight is given without a file, or is out of its range."""
    if weight is None:
        return
    if file is None:
        raise UserError("--arpa-weight is that of an n-gram model: name its file with --arpa")
    if not (isfinite(weight) and 0 <= weight <= 1):
        raise UserError(f"--arpa-weight is {weight:g}, and must be from 0 to 1")


def _held_out(model: TrainedModel, data: Path | None) -> Ids:
    folder = data or model.run.data
    if not folder.exists():
        raise UserError(
            f"the weight of the n-gram model is found on validation text, and {folder} is not "
            "there any more: give --arpa-weight"
        )
    corpus = Corpus.open(folder)
    same = corpus.tokenizer_file.read_bytes() == model.run.tokenizer_file.read_bytes()
    ids_N = corpus.ids("valid")
    if not same or not len(ids_N):
        raise UserError(
            f"the weight of the n-gram model is found on validation text, and {folder} has "
            f"{'none' if same else 'that of another tokenizer'}: give --arpa-weight"
        )
    return ids_N


def _read(file: Path) -> Any:
    try:
        import kenlm
    except ImportError:
        raise UserError("--arpa needs the package kenlm: pip install kenlm") from None
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    settings = kenlm.Config()
    settings.show_progress = False
    settings.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(os.fsencode(file), settings)  # a path need not be UTF-8
    except (OSError, RuntimeError) as error:
        reason = str(error.__cause__ or error).rpartition("\n")[2].rstrip(".")
        raise UserError(f"{file} is no ARPA file that KenLM reads: {reason}") from None
    except UnicodeDecodeError:  # KenLM's message quotes bytes of the file
        raise UserError(f"{file} is no ARPA file that KenLM reads: it is not UTF-8") from None
