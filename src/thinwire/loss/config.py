"""Settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from thinwire.errors import UserError

LossKind = Literal["sampled", "full", "nce", "adaptive"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the next word's probability is trained."""

    kind: LossKind = "sampled"
    """sampled: corrected softmax over a sample of the vocabulary. full: exact softmax. nce:
    noise-contrastive estimation. adaptive: PyTorch's adaptive softmax."""
    samples: int = 1000
    """sampled and nce: expected number of distinct words drawn per step, not counting targets."""
    power: float = 1.0
    """sampled and nce: words are drawn in proportion to their count raised to this power."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(LossKind):
            raise UserError(
                f"loss.kind is {self.kind}, which is none of {', '.join(get_args(LossKind))}"
            )
        if self.samples < 1:
            raise UserError(f"loss.samples is {self.samples}, but at least 1 word must be drawn")
        if not 0.0 <= self.power <= 1.0:
            raise UserError(f"loss.power is {self.power}, but it must lie between 0 and 1")
