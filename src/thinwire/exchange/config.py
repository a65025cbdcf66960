"""Settings of the exchange between workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from thinwire.errors import UserError

ExchangeKind = Literal["sync", "async", "periodic", "auto"]
Select = Literal["rows", "everything"]
CodecName = Literal["fp32", "bf16", "int8", "int4"]
HiddenKind = Literal["feedback", "largest", "unbiased"]
# Settings that only some exchanges have, and those exchanges.
KINDS_OF = {
    "hidden_fraction": ("sync", "async"),
    "hidden_kind": ("sync", "async"),
    "delay": ("sync",),
    "check_replicas": ("sync", "periodic"),
    "local_steps": ("periodic",),
    "row_steps": ("periodic",),
    "fragments": ("periodic",),
    "overlap_steps": ("periodic",),
    "outer_lr": ("periodic",),
    "outer_momentum": ("periodic",),
    "servers": ("async",),
    "staleness_bound": ("async",),
    "accumulate": ("async",),
}
# Longer timeouts overflow the integers of the transports.
LONGEST_TIMEOUT_SECONDS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    """How several workers train one model; one worker alone exchanges nothing."""

    kind: ExchangeKind = "sync"
    """sync: the workers add up their gradients at every step. async: servers hold the parameters,
    and no worker waits for another. periodic: each worker takes local steps, then an outer step
    merges the changes. auto: the exchange that `thinwire plan` finds best for these workers."""
    select: Annotated[Select, Parameter(name=("--select", "--exchange.select"))] = "rows"
    """What is sent. rows: the rows and blocks that a step touched. everything: all parameters (the
    dense baseline). The same parameters are updated in both cases."""
    codec: Annotated[CodecName, Parameter(name=("--codec", "--exchange.codec"))] = "fp32"
    """Encoding of values: fp32 4, bf16 2, int8 1, int4 0.5 bytes per value; int8 and int4 add one
    scale per row."""
    hidden_fraction: float = 1.0
    """sync and async: fraction of the rows of the hidden blocks that is sent in one step."""
    hidden_kind: HiddenKind = "feedback"
    """What happens to the gradients of rows that are not sent. feedback: they are kept in a
    residual and added when the row is next sent. largest: the same, and rows with the largest
    residual are sent first. unbiased: they are dropped, and the rows that are sent are scaled up.
    feedback costs the least quality."""
    delay: int = 0
    """sync: number of steps by which the gradients of the embedding and of the hidden blocks are
    delayed. 1: the exchange overlaps with the computation of the next step. 0: the results are
    those of one worker."""
    local_steps: int = 4
    """periodic: number of steps between two exchanges of the same row of a block."""
    row_steps: int = 0
    """periodic: number of steps between two exchanges of the same row of a table, a multiple of
    local_steps. Rows change less between two exchanges than blocks do, and are most of what is
    sent. 0: local_steps."""
    fragments: int = 4
    """periodic: number of parts of the model. The parts are exchanged one after another, evenly
    spread over local_steps, so that the link is always in use."""
    overlap_steps: int = 0
    """periodic: number of local steps between sending changes and applying the merged changes.
    Fewer steps cost less quality, but workers wait longer for a slow link. 0: until the next
    turn."""
    outer_lr: float = 1.0
    """periodic: learning rate of the outer step."""
    outer_momentum: float = 0.0
    """periodic: Nesterov momentum of the outer step."""
    timeout_seconds: float = 60.0
    """Longest wait for another worker or a server, in seconds."""
    check_replicas: Annotated[
        bool, Parameter(name=("--check-replicas", "--exchange.check_replicas"))
    ] = False
    """sync and periodic: compare a hash of every worker's parameters at each evaluation."""
    servers: int = 1
    """async with --workers: number of servers on this machine. Each of n servers holds every n-th
    row."""
    staleness_bound: int = 0
    """async: a push is dropped if more updates than this were applied after its pull; its worker
    then pulls again. 0: no push is dropped."""
    accumulate: int = 0
    """async: number of pushes whose mean is applied as one update. 0: max(1, workers // 4)."""

    def __post_init__(self) -> None:
        for name, kinds in (
            ("kind", ExchangeKind),
            ("select", Select),
            ("codec", CodecName),
            ("hidden_kind", HiddenKind),
        ):
            if getattr(self, name) not in get_args(kinds):
                raise UserError(
                    f"exchange.{name} is {getattr(self, name)}, which is none of "
                    f"{', '.join(get_args(kinds))}"
                )
        if not 0.0 < self.hidden_fraction <= 1.0:
            raise UserError(
                f"exchange.hidden_fraction is {self.hidden_fraction}, but it must lie in (0, 1]"
            )
        if self.hidden_fraction < 1.0 and (self.select == "everything" or self.kind == "periodic"):
            reason = "a periodic exchange" if self.kind == "periodic" else "--select everything"
            raise UserError(
                f"{reason} sends all hidden blocks, so exchange.hidden_fraction must be 1, and is "
                f"{self.hidden_fraction}"
            )
        for name in ("local_steps", "fragments", "servers"):
            if getattr(self, name) < 1:
                raise UserError(f"exchange.{name} is {getattr(self, name)}, and must be 1 or more")
        if self.fragments > self.local_steps:
            raise UserError(
                f"exchange.fragments is {self.fragments}, but no more than exchange.local_steps "
                f"({self.local_steps}) can be spread over them"
            )
        if self.row_steps % self.local_steps:
            raise UserError(
                f"exchange.row_steps is {self.row_steps}, and must be a multiple of "
                f"exchange.local_steps ({self.local_steps})"
            )
        if not self.outer_lr > 0:
            raise UserError(f"exchange.outer_lr is {self.outer_lr}, and must be above 0")
        if not 0 < self.timeout_seconds <= LONGEST_TIMEOUT_SECONDS:
            raise UserError(
                f"exchange.timeout_seconds is {self.timeout_seconds}, and must lie between 0 and "
                f"{LONGEST_TIMEOUT_SECONDS:,}"
            )
        if not 0.0 <= self.outer_momentum < 1.0:
            raise UserError(
                f"exchange.outer_momentum is {self.outer_momentum}, but it must lie in [0, 1)"
            )
        for name in ("delay", "staleness_bound", "accumulate", "row_steps", "overlap_steps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"exchange.{name} is {getattr(self, name)}, and must be 0 or more")

    def require_applicable(self) -> None:
        """Refuse settings that belong to other exchanges only.

        Raises:
            UserError: such a setting is not at its default, and would have no effect.
        """
        for name, kinds in KINDS_OF.items():
            value, default = getattr(self, name), getattr(ExchangeConfig, name)
            if self.kind not in (*kinds, "auto") and value != default:
                raise UserError(
                    f"exchange.{name} is {value}, and a run with the exchange {self.kind} has no "
                    f"such setting: {' and '.join(kinds)} {'have' if len(kinds) > 1 else 'has'} it"
                )

    def flushes(self, workers: int) -> bool:
        """Whether an evaluation or a save changes the results, because `Exchange.flush` applies
        changes earlier than they would be applied otherwise."""
        return workers > 1 and (self.kind == "periodic" or (self.kind == "sync" and self.delay > 0))

    def sample_number(self, step: int, worker: int, workers: int) -> int:
        """The number that seeds a worker's sample of the vocabulary at this step.

        Synchronous workers share one sample, so that its ids need not be sent. Other workers draw a
        different sample each.
        """
        return step if self.kind == "sync" else step * workers + worker

    def for_workers(self, workers: int) -> ExchangeConfig:
        """The same settings, with the default of `accumulate` replaced by a number."""
        return replace(self, accumulate=self.accumulate or max(1, workers // 4))
