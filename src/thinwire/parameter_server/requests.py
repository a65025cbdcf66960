"""The rows that a step of a worker needs, of every parameter and from each server.

M servers, of which server i holds rows i, i + M, ...; R rows of a group touched.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from thinwire.parameter_server.protocol import ABSENT, Selection
from thinwire.touched import Touched


@dataclass(frozen=True)
class Group:
    """Rows that several parameters share: sorted ids, and their positions before sorting."""

    ids_R: Tensor
    order_R: Tensor


@dataclass(frozen=True)
class RowRequest:
    """What a step needs.

    Attributes:
        touched: rows of the tables.
        blocks: rows of the blocks.
        group_of: for each parameter, the index of its group.
        groups: None for a group of every row.
    """

    touched: Touched
    blocks: Mapping[str, Tensor | None]
    group_of: tuple[int, ...]
    groups: tuple[Group | None, ...]

    def only(self, names: Sequence[str], among: Container[str]) -> RowRequest:
        """The same for some of the parameters, whose order is that of `names`."""
        kept = [g if n in among else ABSENT for n, g in zip(names, self.group_of, strict=True)]
        numbers = sorted(set(kept) - {ABSENT})
        group_of = tuple(ABSENT if g == ABSENT else numbers.index(g) for g in kept)
        return replace(self, group_of=group_of, groups=tuple(self.groups[g] for g in numbers))

    def selection(self, index: int, count: int) -> tuple[Selection, list[Tensor | None]]:
        """The rows of server `index` of `count`, by its own ids, and their gradient positions.

        A group of every row has None for its positions.
        """
        ids: list[Tensor | None] = []
        positions: list[Tensor | None] = []
        for group in self.groups:
            if group is None:
                ids.append(None)
                positions.append(None)
            elif count == 1:
                ids.append(group.ids_R)
                positions.append(group.order_R)
            else:
                mask_R = group.ids_R % count == index
                ids.append(group.ids_R[mask_R] // count)
                positions.append(group.order_R[mask_R])
        return Selection(self.group_of, tuple(ids)), positions
