"""Samples words without replacement, with known inclusion probabilities.

Inclusion-probability sampling, after Kaldi-RNNLM: the probability that word i is in the sample is
q_i = min(alpha p_i, 1). Frequent words reach 1 by themselves, so the frequent set and the random
set are one rule. As drawn here:

1. Words are sorted by falling p. The first C words, whose q would reach 1, are always drawn.
2. The other words become consecutive intervals of length q_i, which together span exactly m.
3. One point is drawn uniformly in each of the m unit intervals [j, j + 1). A word is drawn if a
   point falls in its interval. Neighbours have similar frequencies, so the sample is stratified:
   each frequency range is always represented, and the estimated partition function has less
   variance than with independent draws.
4. A word whose interval crosses a boundary, with parts a and b, can be hit twice. Its inclusion
   probability is 1 - (1 - a)(1 - b) = a + b - a b; that of every other word is q_i. The sampler
   returns these exact values. C + m is chosen so that they sum to `samples` as closely as whole
   points allow: usually within two words, but within V / 12 if all counts are equal and `samples`
   is close to V.

A draw costs O(S log V), and not O(V).

V vocabulary, S words drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thinwire.errors import UserError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Drawn words with their probabilities of being drawn.

    Attributes:
        ids_S: sorted distinct word ids, int64.
        log_inclusion_S: natural log of the probability that each is in a draw, float32; at most 0.
    """

    ids_S: Tensor
    log_inclusion_S: Tensor


class Sampler:
    """Draws samples of about `samples` distinct words from a vocabulary with the given counts.

    Args:
        counts: how often each word occurs in the training text, `[V]`. 0 counts as 1, because the
            model could not learn that a word is improbable if it were never drawn.
        samples: expected number of distinct words per draw. With V or more, every word is drawn.
        power: words are drawn in proportion to count ** power.

    Raises:
        UserError: `samples` is below 1, the vocabulary is empty, or a count is negative or not
            finite.

    Examples:
        Frequent words are always in the sample; their log-probability is 0.

        >>> import torch, thinwire
        >>> sampler = thinwire.Sampler(torch.tensor([1000, 500, 10, 9, 8, 7]), samples=3)
        >>> sample = sampler.draw(torch.Generator().manual_seed(1))
        >>> sample.ids_S[:2].tolist(), sample.log_inclusion_S[:2].tolist()
        ([0, 1], [0.0, 0.0])
        >>> len(sample.ids_S)
        3
    """

    def __init__(self, counts: Tensor | np.ndarray, samples: int, power: float = 1.0) -> None:
        counts_V = np.asarray(torch.as_tensor(counts).to("cpu", torch.float64))
        _require_counts(counts_V)
        if samples < 1 or counts_V.size == 0:
            raise UserError(f"cannot draw {samples} words from a vocabulary of {counts_V.size}")
        p_V = np.maximum(counts_V, 1.0) ** power
        self.vocab_size = p_V.size
        order_V = np.argsort(-p_V, kind="stable")
        falling_V = p_V[order_V]
        num_certain, num_points = _balance(falling_V, samples)

        lengths = _interval_lengths(falling_V, num_certain, num_points)
        inclusion_V = np.ones(p_V.size)
        inclusion_V[order_V[num_certain:]] = _inclusion(lengths)
        # The state that grows with V: the probabilities, and the ends of the intervals.
        self.inclusion_V = torch.from_numpy(inclusion_V)
        self._log_inclusion_V = self.inclusion_V.log().to(torch.float32)
        self._order_V = torch.from_numpy(order_V)
        self._num_certain = num_certain
        self._ends = torch.from_numpy(np.cumsum(lengths))
        self._starts_of_strata = torch.arange(num_points, dtype=torch.float64)

    def draw(self, generator: torch.Generator) -> Sample:
        """Draw one sample. The same generator state gives the same sample on every machine."""
        points = self._starts_of_strata + torch.rand(
            len(self._starts_of_strata), generator=generator, dtype=torch.float64
        )
        if not len(points):
            ids_S = self._order_V.sort().values
            return Sample(ids_S, self._log_inclusion_V[ids_S])
        hit = torch.searchsorted(self._ends, points, right=True).clamp_(max=len(self._ends) - 1)
        tail = self._order_V[self._num_certain + hit.unique_consecutive()]
        ids_S = torch.cat([self._order_V[: self._num_certain], tail]).sort().values
        return Sample(ids_S, self._log_inclusion_V[ids_S])

    def require_rows(self, weight_VD: Tensor, bias_V: Tensor) -> None:
        """Make sure that an output layer belongs to this vocabulary.

        Raises:
            UserError: it has more or fewer rows or biases than there are counts.
        """
        for name, rows in (("weight", weight_VD), ("bias", bias_V)):
            if len(rows) != self.vocab_size:
                raise UserError(
                    f"there are counts of {self.vocab_size} words, but the output {name} has "
                    f"{len(rows)} rows"
                )

    def log_inclusion(self, ids: Tensor) -> Tensor:
        """ln of the probability that each of these words is in a draw, float32."""
        return self._log_inclusion_V.to(ids.device)[ids]


def _require_counts(counts_V: Floats) -> None:
    if counts_V.ndim != 1:
        raise UserError(
            f"counts have the shape {list(counts_V.shape)}, but must be one number a word"
        )
    wrong_V = ~(np.isfinite(counts_V) & (counts_V >= 0))
    if wrong_V.any():
        first = int(wrong_V.argmax())
        raise UserError(
            f"the count of word {first} is {counts_V[first]:g}, but counts must be finite and "
            "0 or more"
        )


def _interval_lengths(falling_V: Floats, num_certain: int, num_points: int) -> Floats:
    tail = falling_V[num_certain:]
    return tail * (num_points / tail.sum()) if len(tail) else tail


def _inclusion(lengths: Floats) -> Floats:
    """The exact probability that each interval is hit, with one uniform point per unit interval."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    boundary = np.floor(ends)
    before = np.clip(boundary - starts, 0.0, lengths)  # before the interval's last boundary
    after = lengths - before
    return lengths - before * after


def _balance(falling_V: Floats, samples: int) -> tuple[int, int]:
    """The numbers of words that are always drawn and of points, for `samples` expected words."""
    V = falling_V.size
    if samples >= V:
        return V, 0
    remaining_V = np.cumsum(falling_V[::-1])[::-1]

    def certain(total: int) -> int:
        # The first word c whose interval is at most 1 long, if the other words share the remaining
        # total - c points: p_c (total - c) <= sum of p from c on. It comes before word `total`.
        return int(np.argmax(falling_V * (total - np.arange(V)) <= remaining_V))

    def expected(total: int) -> float:
        c = certain(total)
        return c + float(_inclusion(_interval_lengths(falling_V, c, total - c)).sum())

    # Words that are hit twice make the expectation a little smaller than the total.
    low, high = 1, V
    while low < high:
        middle = (low + high) // 2
        if expected(middle) < samples:
            low = middle + 1
        else:
            high = middle
    total = min((t for t in (low - 1, low) if t >= 1), key=lambda t: abs(expected(t) - samples))
    num_certain = certain(total)
    return num_certain, total - num_certain
