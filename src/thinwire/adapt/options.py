"""The settings of an adaptation; their defaults are those that measured best."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

from thinwire.config import Device
from thinwire.errors import UserError
from thinwire.exchange.config import CodecName, ExchangeKind

Method = Literal["continue", "layers"]


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """Settings of one adaptation. All other settings are those of the run that is adapted."""

    method: Method = "continue"
    """continue: train all parameters further; layers: train small layers inserted into the model,
    and its output biases."""
    mix_ratio: float | None = None
    """Tokens of old text for each token of new text; 0: new text only. Default: 4 where there is
    old text for `continue`, 0 for `layers`."""
    new_words: int = 0
    """At most this many words of the new text are added to the vocabulary."""
    input_layers: bool = False
    """layers: insert one after the embedding too."""
    valid: str | float | None = None
    """Held-out new text: a file, folder or glob, or the fraction of the lines to hold out."""
    seconds: float | None = None
    """Training budget in seconds."""
    tokens: int | None = None
    """Training budget in tokens, those of the old text included."""
    passes: float | None = None
    """Training budget in passes over the new text."""
    patience: int = 3
    """Training ends after this many evaluations in a row without a new best; 0: never early."""
    lr: float | None = None
    """Learning rate of the dense blocks or layers."""
    row_lr: float | None = None
    """Learning rate of the embedding and output rows."""
    batch: int | None = None
    """Sequences in a step, over all workers."""
    seed: int = 1
    """Seed of everything random."""
    threads: int = 0
    """Compute threads of each worker; 0: the cores, shared out evenly."""
    workers: int = 1
    """Workers on this machine."""
    device: Device = "auto"
    """Device to compute on; auto: CUDA if there is a GPU, else the CPU."""
    exchange: ExchangeKind = "sync"
    """How several workers exchange their updates."""
    codec: CodecName = "fp32"
    """How numbers are encoded between workers."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UserError(
                f"--method is {self.method}, which is none of {', '.join(get_args(Method))}"
            )
        for name in ("mix_ratio", "new_words", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{_flag(name)} is {value}, and must be 0 or more")
        for name in ("seconds", "tokens", "passes", "lr", "row_lr", "batch"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and isfinite(value)):
                raise UserError(f"{_flag(name)} is {value}, and must be above 0")
        if self.method == "layers" and self.new_words:
            raise UserError(
                "--method layers leaves the vocabulary as it is, so it takes no --new-words: use "
                "--method continue"
            )
        if self.method == "continue" and self.input_layers:
            raise UserError("--input-layers belongs to --method layers")
        if self.batch is not None and self.batch < self.workers:
            raise UserError(
                f"--batch {self.batch} is too small for {self.workers} workers: each needs a "
                "sequence"
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
