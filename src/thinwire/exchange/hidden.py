"""Sampled hidden blocks: a step sends only some rows of each block's gradient.

1. **Select** a fraction of the rows (neurons) of every block, rounded up. The rows take turns in an
   order drawn from a seed that all workers share, so no index is sent, and each row is sent as
   often as any other.
2. **Compensate** for the rows that are not sent, in one of three ways:
   - `feedback`: the gradient of a row is added to a residual, which is sent with the row the next
     time (error feedback: Seide et al. 2014; Stich et al. 2018, arXiv 1809.07599). Nothing is lost.
   - `largest`: the same, but rows with the largest residuals are sent first. All workers must
     select the same rows, so the residual's norm is estimated from what all workers know: the norm
     of the row when it was last sent, and the number of steps since.
   - `unbiased`: rows that are not sent are dropped, and rows that are sent are divided by the
     probability with which they were selected.

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
# Stands for a norm that is not known yet. It is so large that every row is soon sent once.
UNSEEN_NORM = 1e30
# A row's norm counts as at least this fraction of the mean norm, so that no row waits for ever.
LEAST_SHARE = 0.1


def num_selected(fraction: float, num_rows: int) -> int:
    """The number of rows of a block that one step sends."""
    return ceil(fraction * num_rows)


class HiddenBlocks:
    """Selects the rows of hidden blocks that a step sends, and keeps the residuals of the others.

    Args:
        blocks: the dense parameters by name.
        fraction: the fraction of each block's rows that one step sends, in (0, 1].
        kind: how to compensate for the rows that are not sent.
        seed: the seed that all workers share.
    """

    def __init__(
        self, blocks: Mapping[str, Tensor], fraction: float, kind: HiddenKind, seed: int
    ) -> None:
        self._num_rows = {name: len(block) for name, block in blocks.items()}
        self._fraction, self._kind, self._seed = fraction, kind, seed
        self.residuals: dict[str, Tensor] = {}
        """For each block, the sum of its gradients that were not sent yet. It is empty where every
        row is sent, and for the kind `unbiased`."""
        self._norm: dict[str, Tensor] = {}
        self._age: dict[str, Tensor] = {}
        if fraction < 1.0 and kind != "unbiased":
            self.residuals = {n: torch.zeros_like(b).detach() for n, b in blocks.items()}
        if fraction < 1.0 and kind == "largest":
            self._norm = {n: torch.full((H,), UNSEEN_NORM) for n, H in self._num_rows.items()}
            self._age = {n: torch.zeros(H) for n, H in self._num_rows.items()}
        self._order = {
            name: torch.randperm(H, generator=torch_generator(seed, "hidden", name))
            for name, H in self._num_rows.items()
        }

    @property
    def shared_state(self) -> dict[str, Tensor]:
        """What all workers know of the residuals, by name: the norm of each row when it was last
        sent, and the number of steps since."""
        return {
            **{f"norm.{name}": norm for name, norm in self._norm.items()},
            **{f"age.{name}": age for name, age in self._age.items()},
        }

    def load(self, residuals: Mapping[str, Tensor], shared_state: Mapping[str, Tensor]) -> None:
        """Restore both; a tensor that `shared_state` lacks keeps its initial value."""
        for name, tensor in self.residuals.items():
            tensor.copy_(residuals[name])
        for name, tensor in self.shared_state.items():
            if name in shared_state:
                tensor.copy_(shared_state[name])

    def select(self, step: int) -> Selection:
        """The rows `[K]` of each block that this step sends, sorted; None: all rows."""
        if self._fraction == 1.0:
            return dict.fromkeys(self._num_rows)
        return {name: self._draw(name, step) for name in self._num_rows}

    def compensate(self, name: str, gradient: Tensor, ids_K: Tensor | None) -> Tensor:
        """The selected rows of a gradient as they are sent, compensated for the other rows."""
        if ids_K is None:
            return gradient
        ids_K = ids_K.to(gradient.device)
        if self._kind == "unbiased":
            return gradient.index_select(0, ids_K) * (self._num_rows[name] / len(ids_K))
        residual = self.residuals[name].add_(gradient)
        sent_K = residual.index_select(0, ids_K)
        residual.index_fill_(0, ids_K, 0.0)
        return sent_K

    def observe(self, name: str, ids_K: Tensor | None, merged: Tensor) -> None:
        """Record the norms of the rows that were sent, from the merged gradient of all workers."""
        if ids_K is None or self._kind != "largest":
            return
        age, norm = self._age[name], self._norm[name]
        # The residual of n steps with independent noise grows with the root of n.
        steps_K = age[ids_K].clamp_(min=1.0)
        norm[ids_K] = merged.reshape(len(ids_K), -1).norm(dim=1).cpu() / steps_K.sqrt()
        age[ids_K] = 0.0

    def _draw(self, name: str, step: int) -> Tensor:
        H = self._num_rows[name]
        K = num_selected(self._fraction, H)
        if self._kind != "largest":
            positions_K = (step * K + torch.arange(K)) % H
            return self._order[name][positions_K].sort().values
        generator = torch_generator(self._seed, "hidden", name, step)
        self._age[name] += 1.0
        norm_H = self._norm[name]
        known = norm_H[(norm_H > 0.0) & (norm_H < UNSEEN_NORM)]
        mean = float(known.mean()) if len(known) else 1.0
        # All gradients are zero while the output rows are zero: such a norm predicts nothing.
        norm_H = torch.where(norm_H == 0.0, mean, norm_H).clamp(min=LEAST_SHARE * mean)
        estimate_H = norm_H * self._age[name].sqrt()
        # Chance decides between equal estimates, as in the first steps.
        estimate_H = estimate_H * (1.0 + 1e-3 * torch.rand(H, generator=generator))
        return estimate_H.topk(K).indices.sort().values
