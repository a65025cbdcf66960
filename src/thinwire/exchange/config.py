"""Settings of how several workers agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from thinwire.errors import UserError

ExchangeKind = Literal["sync", "async", "periodic"]
Select = Literal["rows", "everything"]
CodecName = Literal["fp32", "bf16", "int8"]


@dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    """How several workers train one model; one worker alone exchanges nothing."""

    kind: ExchangeKind = "sync"
    """`--exchange` for short. sync: the workers add up their gradients at every step; async: a server holds the parameters,
    and nobody waits; periodic: local steps, then an outer step on what changed."""
    select: Annotated[Select, Parameter(name=("--select", "--exchange.select"))] = "rows"
    """What travels: the rows and blocks that a step touched, or everything (the dense baseline).
    It changes what is sent, never what is updated."""
    codec: Annotated[CodecName, Parameter(name=("--codec", "--exchange.codec"))] = "fp32"
    """How numbers travel: 4 bytes each, 2, or 1 and a scale for each row."""
    hidden_fraction: float = 1.0
    """Part of the hidden blocks' rows that travels in a step; the rest is made up later."""
    local_steps: int = 16
    """periodic: steps between two exchanges of the same row or block."""
    fragments: int = 4
    """periodic: parts of the model that are exchanged one after the other, evenly spread over the
    interval, so that the link is in use all the time."""
    outer_lr: float = 1.0
    """periodic: learning rate of the outer step; 1 with no momentum is plain averaging."""
    outer_momentum: float = 0.0
    """periodic: Nesterov momentum of the outer step."""
    timeout_seconds: float = 60.0
    """The longest wait for another worker or a server."""
    check_replicas: Annotated[
        bool, Parameter(name=("--check-replicas", "--exchange.check_replicas"))
    ] = False
    """sync: compare a hash of every worker's parameters at each evaluation."""

    def __post_init__(self) -> None:
        for name, kinds in (("kind", ExchangeKind), ("select", Select), ("codec", CodecName)):
            if getattr(self, name) not in get_args(kinds):
                raise UserError(
                    f"exchange.{name} is {getattr(self, name)}, which is none of "
                    f"{', '.join(get_args(kinds))}"
                )
        if not 0.0 < self.hidden_fraction <= 1.0:
            raise UserError(
                f"exchange.hidden_fraction is {self.hidden_fraction}, but it must lie in (0, 1]"
            )
        for name in ("local_steps", "fragments"):
            if getattr(self, name) < 1:
                raise UserError(f"exchange.{name} is {getattr(self, name)}, and must be 1 or more")
        if self.fragments > self.local_steps:
            raise UserError(
                f"exchange.fragments is {self.fragments}, but no more than exchange.local_steps "
                f"({self.local_steps}) can be spread over them"
            )
        for name in ("outer_lr", "timeout_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"exchange.{name} is {getattr(self, name)}, and must be above 0")
        if not 0.0 <= self.outer_momentum < 1.0:
            raise UserError(
                f"exchange.outer_momentum is {self.outer_momentum}, but it must lie in [0, 1)"
            )
