"""Hidden blocks, sampled: in a step only some rows of each block's gradient travel.

1. **Select.** A part `fraction` of the rows (neurons) of every block, rounded up. The rows take
   turns in an order drawn from a seed that all workers share, so that no index travels, and no row
   waits longer than it must.
2. **Make up** for the others, in one of three ways:
   - `feedback`: a row's gradient is kept until the row travels, and added to what travels then
     (error feedback: Seide et al. 2014; Stich et al. 2018, arXiv 1809.07599). Nothing is lost.
   - `largest`: the same, but rows for which more gradient has piled up go first. All workers must
     choose alike, so the pile is judged by what all know: the norm that the row had when it last
     travelled, and the steps since.
   - `unbiased`: what does not travel is dropped, and what travels is divided by the probability
     with which it was selected.

H rows of a block, K of them selected.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import torch
from torch import Tensor

from thinwire.exchange.config import HiddenKind
from thinwire.seeds import torch_generator

Selection = Mapping[str, Tensor | None]
# What a row whose norm is not known yet counts as, so that every row travels once soon.
UNSEEN_NORM = 1e30
# A row counts as this part of the mean norm or more, so that none waits for ever.
LEAST_SHARE = 0.1


def num_selected(fraction: float, num_rows: int) -> int:
    """How many rows of a block travel in a step."""
    return ceil(fraction * num_rows)


class HiddenBlocks:
    """The rows of hidden blocks that travel, and what waits for the others.

    Args:
        blocks: the dense parameters by name.
        fraction: the part of each block's rows that travels in a step, in (0, 1].
        kind: how the others are made up for.
        seed: shared by all workers.
    """

    def __init__(
        self, blocks: Mapping[str, Tensor], fraction: float, kind: HiddenKind, seed: int
    ) -> None:
        self._num_rows = {name: len(block) for name, block in blocks.items()}
        self._fraction, self._kind, self._seed = fraction, kind, seed
        self.waiting: dict[str, Tensor] = {}
        """For each block, the gradient that has not travelled yet; nothing where none waits."""
        self._norm: dict[str, Tensor] = {}
        self._age: dict[str, Tensor] = {}
        if fraction < 1.0 and kind != "unbiased":
            self.waiting = {n: torch.zeros_like(b).detach() for n, b in blocks.items()}
        if fraction < 1.0 and kind == "largest":
            self._norm = {n: torch.full((H,), UNSEEN_NORM) for n, H in self._num_rows.items()}
            self._age = {n: torch.zeros(H) for n, H in self._num_rows.items()}
        self._order = {
            name: torch.randperm(H, generator=torch_generator(seed, "hidden", name))
            for name, H in self._num_rows.items()
        }

    @property
    def piles(self) -> dict[str, Tensor]:
        """What all workers know of the rows that wait, by name."""
        return {
            **{f"norm.{name}": norm for name, norm in self._norm.items()},
            **{f"age.{name}": age for name, age in self._age.items()},
        }

    def load(self, waiting: Mapping[str, Tensor], piles: Mapping[str, Tensor]) -> None:
        """Take over what `waiting` and `piles` were; piles that are not known start afresh."""
        for name, tensor in self.waiting.items():
            tensor.copy_(waiting[name])
        for name, tensor in self.piles.items():
            if name in piles:
                tensor.copy_(piles[name])

    def select(self, step: int) -> Selection:
        """The rows `[K]` of each block that travel in this step, sorted; None: all."""
        if self._fraction == 1.0:
            return dict.fromkeys(self._num_rows)
        return {name: self._draw(name, step) for name in self._num_rows}

    def compensate(self, name: str, gradient: Tensor, ids_K: Tensor | None) -> Tensor:
        """What travels of a gradient: its selected rows, made up for the others."""
        if ids_K is None:
            return gradient
        ids_K = ids_K.to(gradient.device)
        if self._kind == "unbiased":
            return gradient.index_select(0, ids_K) * (self._num_rows[name] / len(ids_K))
        waiting = self.waiting[name].add_(gradient)
        travelling = waiting.index_select(0, ids_K)
        waiting.index_fill_(0, ids_K, 0.0)
        return travelling

    def observe(self, name: str, ids_K: Tensor | None, merged: Tensor) -> None:
        """Learn the norms of the rows that have travelled, as all workers see them."""
        if ids_K is None or self._kind != "largest":
            return
        age, norm = self._age[name], self._norm[name]
        # A row's pile of n steps with independent noise has grown with the root of n.
        steps_K = age[ids_K].clamp_(min=1.0)
        norm[ids_K] = merged.reshape(len(ids_K), -1).norm(dim=1).cpu() / steps_K.sqrt()
        age[ids_K] = 0.0

    def _draw(self, name: str, step: int) -> Tensor:
        H = self._num_rows[name]
        K = num_selected(self._fraction, H)
        if self._kind != "largest":
            places_K = (step * K + torch.arange(K)) % H
            return self._order[name][places_K].sort().values
        generator = torch_generator(self._seed, "hidden", name, step)
        self._age[name] += 1.0
        norm_H = self._norm[name]
        known = norm_H[(norm_H > 0.0) & (norm_H < UNSEEN_NORM)]
        mean = float(known.mean()) if len(known) else 1.0
        # A gradient of zero, as all are while the output rows still are, says nothing of the next.
        norm_H = torch.where(norm_H == 0.0, mean, norm_H).clamp(min=LEAST_SHARE * mean)
        piled_H = norm_H * self._age[name].sqrt()
        # Equal piles, as in the first steps, take turns by chance.
        piled_H = piled_H * (1.0 + 1e-3 * torch.rand(H, generator=generator))
        return piled_H.topk(K).indices.sort().values
