"""N-best lists ranked by a first pass and a language model together.

1. **Score.** Every hypothesis is scored as a line on its own: the negative natural log-probability
   of each word, which may be several tokens, and of the end of the line.
2. **Merge.** The score is first pass + weight * ln p(hypothesis) + bonus * length. The hypothesis
   with the highest score is the best; among equal ones, the first in the list.
3. **Tune.** On lists with references, the weight and the bonus with the fewest word errors are
   searched exhaustively on a grid: weights from 2^-10 to 2^10 in half steps of the exponent, and 0;
   for each weight, bonuses from -4 to 4 times the weight in steps of 0.5.

H hypotheses, G hypotheses of one utterance, U utterances.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thinwire.data.tokenizers import Tokenizer, WordTokenizer, find_words
from thinwire.inference.nbest import NBest, Scores
from thinwire.inference.word_errors import Counts, word_errors

WEIGHTS = (0.0, *(2.0 ** (half / 2) for half in range(-20, 21)))
BONUSES = tuple(half / 2 for half in range(-8, 9))


@dataclass(frozen=True)
class WordErrors:
    """Total word errors if one hypothesis of each utterance is chosen.

    Attributes:
        num_words: number of words of the references.
        first: errors if the first hypothesis is chosen.
        chosen: errors if the hypothesis with the highest score is chosen.
        oracle: errors if the hypothesis with the fewest errors is chosen.
    """

    num_words: int
    first: int
    chosen: int
    oracle: int


def words_from_tokens(
    tokenizer: Tokenizer, words: Sequence[str], logprob_T: npt.NDArray[np.float64]
) -> list[float]:
    """The negative ln p of each word and of the end of the line, summed over their tokens."""
    cuts = np.cumsum([0, *tokens_per_word(tokenizer, words), 1])
    assert cuts[-1] == len(logprob_T)
    return [float(-logprob_T[a:b].sum()) for a, b in itertools.pairwise(cuts)]


def tokens_per_word(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """The number of tokens of each word, where single spaces join the words to a line."""
    if isinstance(tokenizer, WordTokenizer):
        return [len(find_words(tokenizer.kind, word)) for word in words]
    # With other tokenizers, a word's tokens may depend on the space before it: encode whole lines.
    ends = [len(tokenizer.encode(" ".join(words[:n]))) for n in range(len(words) + 1)]
    return np.diff(ends).tolist()


def merged(
    nbest: NBest, logprob_H: Scores, length_H: Scores, weight: float, bonus: float
) -> Scores:
    """The score of each hypothesis; higher is better."""
    return nbest.first_pass_H + weight * logprob_H + bonus * length_H


def ranked(nbest: NBest, score_H: Scores) -> Iterator[int]:
    """The indices of all hypotheses: utterance by utterance, the highest score first."""
    for indices in nbest.utterances.values():
        indices_G = np.asarray(indices)
        yield from indices_G[np.argsort(-score_H[indices_G], kind="stable")].tolist()


def errors_of(nbest: NBest, references: Mapping[str, Sequence[str]]) -> Counts:
    """The number of word errors of each hypothesis, `[H]`."""
    errors_H = np.zeros(len(nbest.texts), dtype=np.int64)
    for utterance, indices in nbest.utterances.items():
        hypotheses = [nbest.texts[index].split() for index in indices]
        errors_H[np.asarray(indices)] = word_errors(references[utterance], hypotheses)
    return errors_H


def count_errors(
    nbest: NBest, references: Mapping[str, Sequence[str]], errors_H: Counts, score_H: Scores
) -> WordErrors:
    """The word errors of the first, the chosen and the best hypotheses."""
    groups = [np.asarray(indices) for indices in nbest.utterances.values()]
    return WordErrors(
        num_words=sum(len(references[utterance]) for utterance in nbest.utterances),
        first=sum(int(errors_H[group[0]]) for group in groups),
        chosen=sum(int(errors_H[group[score_H[group].argmax()]]) for group in groups),
        oracle=sum(int(errors_H[group].min()) for group in groups),
    )


def tuned(
    nbest: NBest, logprob_H: Scores, length_H: Scores, errors_H: Counts
) -> tuple[float, float]:
    """The weight and the bonus with the fewest errors.

    Among equally good settings, the smallest bonus per weight is taken, then the smallest weight.
    """
    order_H = np.concatenate([np.asarray(indices) for indices in nbest.utterances.values()])
    sizes = [len(indices) for indices in nbest.utterances.values()]
    starts_U = np.cumsum([0, *sizes[:-1]])
    utterance_H = np.repeat(np.arange(len(sizes)), sizes)
    errors_H = errors_H[order_H]
    fewest: tuple[int, float, float, float] | None = None
    for weight in WEIGHTS:
        for per_weight in BONUSES if weight else (0.0,):
            bonus = weight * per_weight
            score_H = merged(nbest, logprob_H, length_H, weight, bonus)[order_H]
            is_best_H = score_H == np.maximum.reduceat(score_H, starts_U)[utterance_H]
            index_H = np.where(is_best_H, np.arange(len(score_H)), len(score_H))
            chosen_U = np.minimum.reduceat(index_H, starts_U)
            found = int(errors_H[chosen_U].sum()), abs(per_weight), weight, bonus
            fewest = found if fewest is None else min(fewest, found)
    assert fewest is not None
    return fewest[2], fewest[3]
