"""How batches are cut from the token stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thinwire.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the section `data`."""

    batch: int = 64
    """Sequences per step and worker."""

    length: int = 35
    """Tokens per sequence."""

    context: Literal["text", "line"] = "text"
    """text: the state carries over from line to line. line: each line starts from a fresh state."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"data.batch is {self.batch}, and must be 1 or more")
        if self.length < 1:
            raise UserError(f"data.length is {self.length}, and must be 1 or more")
        if self.context not in ("text", "line"):
            raise UserError(f"data.context is {self.context!r}, and must be 'text' or 'line'")
