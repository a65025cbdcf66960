"""Settings of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from thinwire.errors import UserError

ModelKind = Literal["lstm", "transformer"]
AdapterPlaces = Literal["none", "output", "both"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network between the embedding and the output layer."""

    kind: ModelKind = "lstm"
    """lstm: carries its state from batch to batch; transformer: sees `data.length` tokens."""
    width: int = 256
    """Width of the hidden states, and of the output rows."""
    embedding_width: int = 0
    """Width of the embedding rows; 0: the model's width."""
    layers: int = 1
    """Number of layers."""
    heads: int = 4
    """Attention heads of a transformer."""
    tied: bool = False
    """Use the embedding rows as output rows too."""
    dropout: float = 0.0
    """Share of units dropped on embeddings, between layers and on the output while training."""
    adapters: AdapterPlaces = "none"
    """Where a trained model has adaptation layers: before the output, or (both) after the embedding
    too. `thinwire adapt --method layers` sets this."""
    frozen: str = ""
    """A file of parameters that stay as they are while the adaptation layers and the output biases
    are trained; empty: everything is trained. `thinwire adapt --method layers` sets this."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ModelKind):
            raise UserError(
                f"model.kind is {self.kind}, which is none of {', '.join(get_args(ModelKind))}"
            )
        if self.adapters not in get_args(AdapterPlaces):
            raise UserError(
                f"model.adapters is {self.adapters}, which is none of "
                f"{', '.join(get_args(AdapterPlaces))}"
            )
        if self.frozen and self.adapters == "none":
            raise UserError(
                "model.frozen leaves nothing to train where model.adapters is none: "
                "`thinwire adapt --method layers` sets both"
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
