"""New words: they get ids after the old ones, and initial rows.

The new words share the probability of the unknown word in proportion to their counts: each starts
with a copy of the unknown word's rows, and the logarithm of its share is added to the output bias.
So at first every old word keeps its probability, and the new words and the unknown word together
have the probability that the unknown word had.

Under Adagrad the accumulator of a new row starts at its initial value, so new rows learn faster
than old ones.

V old words, K new words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from thinwire.data.tokenizer_json import word_tokenizer_json
from thinwire.data.tokenizers import Tokenizer, WordTokenizer
from thinwire.errors import UserError
from thinwire.language_model import EMBEDDING, OUTPUT_BIAS

LEAST_COUNT = 2  # a word that occurs once may be a spelling mistake; see `prepare`
LAST_STEP = "last_step"  # in a row optimiser's state: the step that updated a row last


@dataclass(frozen=True)
class NewWords:
    """Words to add, in the order of their ids, and their shares of all unknown words."""

    words: Sequence[str]
    shares_K: Sequence[float]

    @classmethod
    def choose(cls, counts: Counter[str], most: int) -> NewWords:
        """The most frequent unknown words that occur twice or more, at most `most` of them."""
        ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        chosen = [(word, count) for word, count in ordered[:most] if count >= LEAST_COUNT]
        total = counts.total() + 1  # leaves a share for words that were never seen
        return cls([word for word, _ in chosen], [count / total for _, count in chosen])

    def __len__(self) -> int:
        return len(self.words)

    def tokenizer_json(self, tokenizer: WordTokenizer) -> str:
        """The tokenizer with these words after the old ones."""
        return word_tokenizer_json(tokenizer.kind, [*tokenizer.words, *self.words])

    def extend_parameters(self, tensors: Mapping[str, Tensor], unk_id: int) -> dict[str, Tensor]:
        """A model's parameters with a row for each new word."""
        extended = dict(tensors)
        for name in (EMBEDDING, "output.weight"):
            if name in tensors:
                rows_KD = tensors[name][unk_id].expand(len(self), -1)
                extended[name] = torch.cat([tensors[name], rows_KD])
        bias_V = tensors[OUTPUT_BIAS].clone()
        shares_K = torch.tensor(self.shares_K, dtype=torch.float64)
        bias_K = (bias_V[unk_id].double() + shares_K.log()).to(bias_V.dtype)
        bias_V[unk_id] += log(1.0 - sum(self.shares_K))
        extended[OUTPUT_BIAS] = torch.cat([bias_V, bias_K])
        return extended

    def extend_optimizer(
        self, tensors: Mapping[str, Tensor], vocab_size: int, initial_accumulator: float
    ) -> dict[str, Tensor]:
        """A row optimiser's state by name, extended by that of rows which were never updated."""
        extended = dict(tensors)
        for name, tensor in tensors.items():
            parameter, _, entry = name.rpartition("/")
            if not name.startswith("rows.") or tensor.ndim == 0 or len(tensor) != vocab_size:
                continue
            fresh_K = tensor.new_zeros(len(self), *tensor.shape[1:])
            if entry == "sum":
                fresh_K.fill_(initial_accumulator)
            elif entry == LAST_STEP:
                fresh_K.fill_(int(tensors[f"{parameter}/step"]))
            extended[name] = torch.cat([tensor, fresh_K])
        return extended


def require_words(tokenizer: Tokenizer) -> WordTokenizer:
    """The tokenizer, if words can be added to it.

    Raises:
        UserError: its kind is not `word` or `space`.
    """
    if not isinstance(tokenizer, WordTokenizer):
        raise UserError(
            "--new-words needs a tokenizer of words (word or space), and this model has another: "
            "what spells every text, as bpe and bytes do, has no unknown words"
        )
    return tokenizer
