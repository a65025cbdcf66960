"""The synchronous exchange: every worker holds the model, each step adds up all gradients.

A step goes in four phases:

1. **Indices.** As soon as a batch is known, each worker announces the rows that it touches and the
   others cannot know. Rows that a shared seed drew need no ids.
2. **Early values.** The gradients of the output rows are ready first. They go while those of the
   rest are being computed.
3. **Late values.** The gradients of the embedding rows and of the blocks.
4. **Update.** Every worker applies the same row-wise update to the merged gradient, so the replicas
   stay identical.

In 2 and 3, what lies at the same place on every worker (shared rows and blocks) is summed; rows of
a worker's own are gathered and merged by row, in the order of the ranks, so that every worker adds
the same numbers in the same order. With `select = everything` whole tables are summed and nothing
is gathered; what is updated is the same.

With `delay` what is ready last, 3, is applied so many steps later, on every worker alike: it then
hides behind the next step as early values hide behind the rest of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Size, Tensor
from torch.utils.hooks import RemovableHandle

from thinwire.exchange.coded import CodedCollective
from thinwire.exchange.config import ExchangeConfig
from thinwire.exchange.contract import Exchange, ExchangeState, Traffic
from thinwire.exchange.hidden import HiddenBlocks, Selection
from thinwire.exchange.unshared_rows import (
    MergedRows,
    UnsharedRows,
    announced_ids,
    announcement,
    unshared_rows,
)
from thinwire.optim.updater import Updater, take_gradients
from thinwire.touched import Touched
from thinwire.transport.collective import Collective, Pending


class _Announced(Pending[list[list[Tensor]]]):
    """For each worker the ids of its own rows, by group; both parts of a step need them."""

    def __init__(self, messages: Pending[list[Tensor]], groups: Sequence[UnsharedRows]) -> None:
        self._messages, self._groups = messages, groups
        self._ids_by_rank: list[list[Tensor]] | None = None

    def wait(self) -> list[list[Tensor]]:
        if self._ids_by_rank is None:
            messages = self._messages.wait()
            self._ids_by_rank = [announced_ids(message, self._groups) for message in messages]
        return self._ids_by_rank


NO_BLOCKS: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class _Step:
    """What a step touches, and what the others have been told of it."""

    touched: Touched
    groups: list[UnsharedRows]
    announced: _Announced

    def early(self) -> list[str]:
        """The tables whose gradients go while the rest are computed."""
        return [name for name in self.touched.rows if self.touched.is_early(name)]

    def late(self) -> list[str]:
        """The other tables."""
        return [name for name in self.touched.rows if not self.touched.is_early(name)]

    def shared(self, name: str, gradient: Tensor) -> Tensor:
        """The part of a gradient that lies at the same place on every worker."""
        return (
            gradient
            if self.touched.rows[name] is None
            else gradient[: self.touched.num_shared.get(name, 0)]
        )


@dataclass(frozen=True)
class _Sent:
    """Values that are on their way."""

    names: list[str]
    groups: list[int]
    """Which of the step's groups of own rows are among them."""
    summing: Pending[list[Tensor]] | None
    gathering: Pending[list[Tensor]] | None


@dataclass(frozen=True)
class _UnderWay:
    """A part of a step's gradients that has been sent, and is yet to be merged and applied."""

    step: _Step
    sent: _Sent
    selection: Selection | None = None
    """Of the blocks, where they are in this part."""


class Sync(Exchange):
    """Adds up what the workers' steps touched, then updates as `updater` does.

    Args:
        updater: holds this worker's replica and applies gradients to it.
        collective: all workers of the run.
        config: codec, selection, hidden fraction and delay.
        seed: of stochastic rounding, and of the hidden blocks that travel.
    """

    def __init__(
        self, updater: Updater, collective: Collective, config: ExchangeConfig, seed: int
    ) -> None:
        self.updater, self.collective = updater, collective
        self.num_added = collective.size
        self._coded = CodedCollective(collective, config.codec, seed)
        self._everything, self._delay = config.select == "everything", config.delay
        self._hidden = HiddenBlocks(
            updater.blocks, config.hidden_fraction, config.hidden_kind, seed
        )
        self._step_number = 0
        self._next: _Step | None = None
        self._step: _Step | None = None
        self._early: _Sent | None = None
        self._pushed: _UnderWay | None = None
        self._late: deque[_UnderWay] = deque()
        self._hooks: list[RemovableHandle] = []
        self._dense_bytes = 0.0

    def announce(self, touched: Touched) -> None:
        """Tell the others the rows that they cannot know."""
        groups = unshared_rows(touched)
        messages = self.collective.all_gather(announcement(groups))
        self._next = _Step(touched, groups, _Announced(messages, groups))

    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """This replica's rows."""
        if self._next is None or self._next.touched is not touched:
            self.announce(touched)
        step, self._next = self._next, None
        assert step is not None
        self._step, self._early = step, None
        self._coded.at_step(self._step_number)
        rows = self.updater.rows(touched)
        early = step.early()
        waiting = set(early)

        def send_when_ready(name: str) -> Callable[[Tensor], None]:
            def ready(leaf: Tensor) -> None:
                waiting.discard(name)
                if not waiting:
                    self._early = self._send(step, early, rows)

            return ready

        self._hooks = [
            rows[name].register_post_accumulate_grad_hook(send_when_ready(name)) for name in early
        ]
        return rows

    def push(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> None:
        """See `Exchange`."""
        step, selection = self._step, self._hidden.select(self._step_number)
        assert step is not None, "fetch comes before push"
        assert step.touched is touched, "what is pushed is what was fetched"
        while self._hooks:  # they hold the rows, and the rows hold them
            self._hooks.pop().remove()
        early = self._early or self._send(step, step.early(), rows)
        late = self._send(step, step.late(), rows, selection, take_gradients(blocks))
        self._pushed = _UnderWay(step, early)
        self._late.append(_UnderWay(step, late, selection))
        self._step_number += 1
        self._count_dense()

    def update(self) -> float:
        """See `Exchange`."""
        assert self._pushed is not None, "push comes before update"
        due, self._pushed = [self._pushed], None
        if len(self._late) > self._delay:
            due.append(self._late.popleft())
        return self._apply(due)

    def _apply(self, parts: Sequence[_UnderWay]) -> float:
        """Merge gradients, and update; their norm."""
        merged: dict[str, Tensor] = {}
        merged_ids: dict[str, Tensor | None] = {}
        blocks: dict[str, Tensor] = {}
        for part in parts:
            self._merge(part, merged, merged_ids, blocks)
        return self.updater.apply(Touched(merged_ids), merged, blocks)

    def _merge(
        self,
        part: _UnderWay,
        merged: dict[str, Tensor],
        merged_ids: dict[str, Tensor | None],
        blocks: dict[str, Tensor],
    ) -> None:
        """Wait for one part, and add up what the workers have sent."""
        step, sent = part.step, part.sent
        ids_by_rank = self._coded.wait(step.announced)
        own = [
            MergedRows.of(step.groups[index], [ids[index] for ids in ids_by_rank])
            for index in sent.groups
        ]
        merged_ids.update(dict.fromkeys(sent.names))
        for group in own:
            merged_ids.update(dict.fromkeys(group.group.names, group.ids))
        sums = [] if sent.summing is None else self._coded.wait(sent.summing)
        merged.update(zip(sent.names, sums, strict=False))
        if part.selection is not None:
            blocks |= self._merged_blocks(sums[len(sent.names) :], part.selection)
        if self._everything:
            self._take_touched(sent.names, merged, merged_ids)
        elif sent.gathering is not None:
            messages = self._coded.wait(sent.gathering)
            self._add_own(own, messages, merged)

    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """See `Exchange`."""
        return self._coded.total(numbers)

    def traffic(self) -> Traffic:
        """See `Exchange`."""
        return self._coded.traffic(self._dense_bytes)

    def flush(self) -> None:
        """Apply what is under way; replicas are identical after every step."""
        while self._late:
            self._apply([self._late.popleft()])
        self.updater.flush()

    def merge_optimizers(self) -> None:
        """Nothing to do: all workers see the merged gradient."""

    def state(self) -> ExchangeState:
        """The hidden gradients that wait, and what is known of them."""
        return ExchangeState(shared=self._hidden.piles, own=self._hidden.waiting)

    def load_state(self, step: int, state: ExchangeState) -> None:
        """See `Exchange`."""
        self._step_number = step
        self._hidden.load(state.own, state.shared)

    # Sending

    def _send(
        self,
        step: _Step,
        names: list[str],
        rows: Mapping[str, Tensor],
        selection: Selection | None = None,
        blocks: Mapping[str, Tensor] = NO_BLOCKS,
    ) -> _Sent:
        """Let these tables' gradients go and, with a selection, those of the blocks."""
        gradients = {name: _gradient(rows[name]) for name in names}
        if self._everything:
            summed = [self._whole(name, step.touched, gradients[name]) for name in names]
        else:
            summed = [step.shared(name, gradients[name]) for name in names]
        if selection is not None:
            summed += self._selected(selection, blocks)
        chosen = [i for i, group in enumerate(step.groups) if group.names[0] in names]
        gathering = None
        if chosen and not self._everything:
            own = [
                group.of(gradients[name])
                for group in (step.groups[i] for i in chosen)
                for name in group.names
            ]
            lengths = partial(self._own_bytes, step, chosen)
            gathering = self.collective.all_gather(self._coded.encode(own), lengths)
        # Last, for a sum takes two rounds, and what is gathered goes in the time of the first.
        summing = self._coded.sum(summed) if summed else None
        return _Sent(names, chosen, summing, gathering)

    def _own_bytes(self, step: _Step, chosen: Sequence[int]) -> list[int]:
        """How many bytes every worker's values of these groups' own rows are."""
        return [
            self._coded.num_bytes(
                [self._shape_of(name, ids[i]) for i in chosen for name in step.groups[i].names]
            )
            for ids in step.announced.wait()
        ]

    def _shape_of(self, name: str, ids_O: Tensor) -> Size:
        """Of these rows of a table."""
        return Size((len(ids_O), *self.updater.tables[name].shape[1:]))

    def _whole(self, name: str, touched: Touched, gradient: Tensor) -> Tensor:
        """A table's gradient with all its rows, zero where this worker touched nothing."""
        ids = touched.rows[name]
        if ids is None:
            return gradient
        return torch.zeros_like(self.updater.tables[name]).detach().index_copy_(0, ids, gradient)

    def _selected(self, selection: Selection, gradients: Mapping[str, Tensor]) -> list[Tensor]:
        """What travels of every block, and last a 1 for each that has a gradient."""
        blocks = self.updater.blocks
        device = next(iter(self.updater.tables.values())).device
        present = [float(name in gradients) for name in blocks]
        travelling = [
            self._hidden.compensate(
                name,
                gradients[name] if name in gradients else torch.zeros_like(block).detach(),
                selection[name],
            )
            for name, block in blocks.items()
        ]
        return [*travelling, torch.tensor(present, device=device)]

    # Merging

    def _merged_blocks(self, sums: Sequence[Tensor], selection: Selection) -> dict[str, Tensor]:
        """The blocks' gradients; a block that no worker used has none."""
        *gradients, present = sums
        merged = {}
        blocks = self.updater.blocks.items()
        for (name, block), found, visits in zip(blocks, gradients, present.tolist(), strict=True):
            ids = selection[name]
            self._hidden.observe(name, ids, found)
            found = found.to(block.device)
            if ids is not None:
                whole = torch.zeros_like(block).detach()
                merged[name] = whole.index_copy_(0, ids.to(block.device), found)
            elif visits:
                merged[name] = found
        return merged

    def _take_touched(
        self,
        names: Sequence[str],
        merged: dict[str, Tensor],
        merged_ids: Mapping[str, Tensor | None],
    ) -> None:
        """Of whole tables, the rows that any worker touched."""
        for name in names:
            ids = merged_ids[name]
            merged[name] = merged[name] if ids is None else merged[name].index_select(0, ids)

    def _add_own(
        self,
        groups: Sequence[MergedRows],
        messages: Sequence[Tensor],
        merged: dict[str, Tensor],
    ) -> None:
        """Add every worker's own rows to the sums of the shared ones."""
        tables = [(group, name) for group in groups for name in group.group.names]
        values_of = []
        for rank, message in enumerate(messages):
            shapes = [self._shape_of(name, group.ids_of[rank]) for group, name in tables]
            values_of.append(self._coded.decode(message, shapes))
        for index, (group, name) in enumerate(tables):
            merged[name] = group.added_up(merged[name], [values[index] for values in values_of])

    def _count_dense(self) -> None:
        """What this worker would have sent, had all parameters gone in fp32 by an all-reduce."""
        parameters = [*self.updater.tables.values(), *self.updater.blocks.values()]
        W = self.collective.size
        self._dense_bytes += 2 * (W - 1) / W * sum(4 * p.numel() for p in parameters)


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor).detach() if tensor.grad is None else tensor.grad
