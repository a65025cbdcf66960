"""Settings of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from thinwire.errors import UserError

ModelKind = Literal["lstm", "transformer"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network between the embedding and the output layer."""

    kind: ModelKind = "lstm"
    """lstm: its state carries over from batch to batch. transformer: sees `data.length` tokens."""
    width: int = 256
    """Width of the hidden states, and of the output rows."""
    embedding_width: int = 0
    """Width of the embedding rows. 0: the same as `width`."""
    layers: int = 1
    """Number of layers."""
    heads: int = 4
    """Attention heads of a transformer."""
    tied: bool = False
    """Use the embedding rows as output rows too."""
    dropout: float = 0.0
    """Fraction of units dropped in training: of embeddings, between layers and of the output."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ModelKind):
            raise UserError(
                f"model.kind is {self.kind}, which is none of {', '.join(get_args(ModelKind))}"
            )
        for name, least in (("width", 1), ("layers", 1), ("heads", 1), ("embedding_width", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"model.{name} is {value}, and must be {least} or more")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout is {self.dropout}, but it must lie in [0, 1)")
        if self.tied and self.embedding_width not in (0, self.width):
            raise UserError(
                f"a tied output needs embeddings as wide as the model, but "
                f"model.embedding_width is {self.embedding_width} and model.width {self.width}"
            )
        if self.kind == "transformer" and self.width % (2 * self.heads):
            raise UserError(
                f"model.width is {self.width}, but a transformer's width must be a multiple of "
                f"twice its {self.heads} heads"
            )

    @property
    def input_width(self) -> int:
        """Width of the embedding rows."""
        return self.embedding_width or self.width
