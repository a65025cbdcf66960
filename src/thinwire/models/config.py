"""Settings of the model."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Literal, get_args

from thinwire.errors import UserError

ModelKind = Literal["lstm", "transformer", "causal_conv"]
CLASS_SEPARATOR = ":"  # a kind that contains it names a class: package.module:Class
AdapterPlaces = Literal["none", "output", "both"]

# Convolutions keep their past inputs. Needing more than this number of tokens is a mistake.
MAX_REACH = 1 << 14
# Longer n-grams hardly ever occur twice.
MAX_NGRAMS = 16
# No machine has memory for more, and their size in bytes still fits in int64.
MAX_NGRAM_ROWS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network between the embedding and the output layer.

    Raises:
        UserError: a value is out of its range, or two do not go together.

    Examples:
        >>> import thinwire
        >>> thinwire.ModelConfig(kind="transformer", layers=4).width
        256
        >>> thinwire.ModelConfig(kind="transformer", width=100)
        Traceback (most recent call last):
        ...
        thinwire.errors.UserError: model.width is 100, but a transformer's width must be a \
multiple of twice its 4 heads
    """

    kind: ModelKind | str = "lstm"
    """Architecture. lstm and causal_conv carry their state from batch to batch. transformer sees at
    most `data.length` tokens. package.module:Class: a body of your own, a `thinwire.Body` that can
    be imported."""
    width: int = 256
    """Width of the hidden states, and of the output rows."""
    embedding_width: int = 0
    """Width of the embedding rows. 0: the same as `width`."""
    layers: int = 1
    """Number of layers. causal_conv: number of highway convolutions after the convolution that
    reads the tokens."""
    heads: int = 4
    """Number of attention heads of a transformer or a causal_conv."""
    first_kernel: int = 0
    """causal_conv: number of tokens that the first convolution reads, at little cost over bytes.
    0: the same as `kernel`."""
    kernel: int = 4
    """causal_conv: number of positions that a convolution sees; its own position is the last."""
    dilation: int = 4
    """causal_conv: factor by which the distance between those positions grows from layer to
    layer."""
    attention: bool = True
    """causal_conv: attend to earlier positions of the stream after the convolutions."""
    window: int = 128
    """causal_conv: number of positions that the attention sees; its own position is the last."""
    tied: bool = False
    """Use the embedding rows also as output rows."""
    dropout: float = 0.0
    """Fraction of units that are dropped in training, in the embeddings, between layers and in the
    output."""
    ngrams: int = 0
    """Largest order of the hashed n-grams whose rows are added to the input. 0 or 1: none."""
    ngram_rows: int = 1 << 18
    """Number of rows of the n-grams' table. Each is as wide as an embedding row."""
    adapters: AdapterPlaces = "none"
    """Where a trained model has adaptation layers. output: before the output. both: also after the
    embedding. `thinwire adapt --method layers` sets this."""
    frozen: str = ""
    """File of parameters that do not change while the adaptation layers and the output biases are
    trained. Empty: all parameters are trained. `thinwire adapt --method layers` sets this."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ModelKind) and CLASS_SEPARATOR not in self.kind:
            raise UserError(
                f"model.kind is {self.kind}, which is none of {', '.join(get_args(ModelKind))}, "
                "and no package.module:Class"
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
        for name, least in (
            ("width", 1),
            ("layers", 1),
            ("heads", 1),
            ("embedding_width", 0),
            ("first_kernel", 0),
            ("ngrams", 0),
            ("ngram_rows", 1),
            ("kernel", 2),
            ("dilation", 1),
            ("window", 2),
        ):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"model.{name} is {value}, and must be {least} or more")
        for name, most in (("ngrams", MAX_NGRAMS), ("ngram_rows", MAX_NGRAM_ROWS)):
            value = getattr(self, name)
            if value > most:
                raise UserError(f"model.{name} is {value}, and must be {most} or less")
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

        if self.kind == "causal_conv":
            self._check_convolutions()

    def _check_convolutions(self) -> None:
        if self.attention and self.width % (2 * self.heads):
            raise UserError(
                f"model.width is {self.width}, but with attention a causal_conv's width must be a "
                f"multiple of twice its {self.heads} heads"
            )
        # Computed with logarithms, because powers of large integers take very long.
        log_reach = log(self.kernel - 1) + self.layers * log(self.dilation)
        if log_reach > log(MAX_REACH):
            raise UserError(
                f"the last of {self.layers} convolutions of {self.kernel} positions would look "
                f"more than {MAX_REACH:,} tokens back: lower model.layers, model.dilation or "
                "model.kernel"
            )

    @property
    def input_width(self) -> int:
        """Width of the embedding rows."""
        return self.embedding_width or self.width
