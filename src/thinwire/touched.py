"""Which rows of which parameters a step needs: the notion that everything else speaks.

A batch and its vocabulary sample decide, before any arithmetic, which rows of the embedding and
output tables a step reads and changes. The loss computes on those rows, the optimiser updates
them, an exchange sends them; no other row costs anything.

R rows touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Touched:
    """The rows of each named parameter that a step touches.

    Attributes:
        rows: parameter name -> distinct row ids `[R]`, int64, in the order in which the rows are
            fetched; None means every row, in their own order.
        num_shared: parameter name -> how many of its rows, the first ones, all workers of the step
            have in common, because a shared seed drew them. Parameters not named: none.
        alike: names of parameters of which the same rows are touched, in the same order, as of an
            output's weight and bias; their ids travel once.
    """

    rows: Mapping[str, Tensor | None]
    num_shared: Mapping[str, int] = field(default_factory=dict)
    alike: tuple[tuple[str, ...], ...] = ()

    def is_early(self, name: str) -> bool:
        """Whether all workers touch the same rows of a parameter, if not only those.

        These are an output's, whose gradients are ready before the others.
        """
        return self.rows[name] is None or self.num_shared.get(name, 0) > 0

    def groups(self) -> list[tuple[tuple[str, ...], Tensor | None]]:
        """The parameters, those that are touched alike together, and the row ids of each group."""
        together = {name: names for names in self.alike for name in names}
        groups = dict.fromkeys(together.get(name, (name,)) for name in self.rows)
        return [(names, self.rows[names[0]]) for names in groups]

    def union(self, other: Touched) -> Touched:
        """The rows touched by either, each once; sorted where both name the same parameter."""
        merged = dict(self.rows)
        for name, ids in other.rows.items():
            if name not in merged:
                merged[name] = ids
            elif ids is None or merged[name] is None:
                merged[name] = None
            else:
                merged[name] = torch.cat([merged[name], ids]).unique()  # type: ignore[list-item]
        return Touched(merged)
