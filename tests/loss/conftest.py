"""Every sample that a sampler can draw, with its probability."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from math import prod

import pytest
import torch

from thinwire.loss.sampler import Sample, Sampler

torch.set_num_threads(1)

Outcomes = Callable[[Sampler], "list[tuple[float, Sample]]"]


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> Outcomes:
    """List all outcomes of a draw: (probability, sample).

    In each unit interval one point falls; the intervals' ends cut it into pieces, and where in a
    piece the point falls makes no difference. So each combination of pieces is an outcome, of the
    product of their lengths as probability, and is drawn here with points amid the pieces.
    """

    def enumerate_draws(sampler: Sampler) -> list[tuple[float, Sample]]:
        num_points = len(sampler._starts_of_strata)
        ends = sampler._ends.tolist()
        strata = []
        for j in range(num_points):
            cuts = [j, *(end for end in ends if j < end < j + 1), j + 1]
            strata.append([(b - a, (a + b) / 2 - j) for a, b in pairwise(cuts)])
        found = []
        for pieces in product(*strata):
            points = torch.tensor([middle for _, middle in pieces], dtype=torch.float64)
            with monkeypatch.context() as patch:
                patch.setattr(torch, "rand", lambda *_, points=points, **__: points)
                sample = sampler.draw(torch.Generator())
            found.append((prod(length for length, _ in pieces), sample))
        return found

    return enumerate_draws
