"""The synchronous exchange: every worker holds the model, and each step sums all gradients.

A step has four phases:

1. **Indices.** As soon as a batch is known, each worker sends the ids of the rows that it touches
   and that the others cannot know. Rows that were drawn from a shared seed need no ids.
2. **Early values.** The gradients of the output rows are computed first. They are sent while the
   other gradients are being computed.
3. **Late values.** The gradients of the embedding rows and of the blocks are sent.
4. **Update.** Every worker applies the same row-wise update to the merged gradient, so the replicas
   stay identical.

In phases 2 and 3, the gradients of blocks and of shared rows, which every worker touches, are
summed. The gradients of unshared rows are gathered and merged by row in the order of the ranks, so
that every worker adds the same numbers in the same order. With `select = everything`, whole tables
are summed and nothing is gathered; the same rows are updated.

With `delay`, late values are applied `delay` steps later on all workers: they are then sent while
the next step is computed.
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
    decode_announcement,
    encode_announcement,
    unshared_rows,
)
from thinwire.optim.updater import Updater, take_gradients
from thinwire.touched import Touched
from thinwire.transport.collective import Collective, Pending


class _AnnouncedIds(Pending[list[list[Tensor]]]):
    """For each worker, the ids of its unshared rows, by group. Early and late values need them."""

    def __init__(self, messages: Pending[list[Tensor]], groups: Sequence[UnsharedRows]) -> None:
        self._messages, self._groups = messages, groups
        self._ids_by_rank: list[list[Tensor]] | None = None

    def wait(self) -> list[list[Tensor]]:
        if self._ids_by_rank is None:
            messages = self._messages.wait()
            self._ids_by_rank = [decode_announcement(message, self._groups) for message in messages]
        return self._ids_by_rank


NO_BLOCKS: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class _Step:
    """The rows that a step touches, and the ids of them that all workers have sent."""

    touched: Touched
    groups: list[UnsharedRows]
    announced: _AnnouncedIds

    def early(self) -> list[str]:
        """The tables whose gradients are sent while the others are computed."""
        return [name for name in self.touched.rows if self.touched.is_early(name)]

    def late(self) -> list[str]:
        """The other tables."""
        return [name for name in self.touched.rows if not self.touched.is_early(name)]

    def shared(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient of the rows that every worker touches."""
        return (
            gradient
            if self.touched.rows[name] is None
            else gradient[: self.touched.num_shared.get(name, 0)]
        )


@dataclass(frozen=True)
class _Sent:
    """Values that were sent: a pending sum and a pending gather."""

    names: list[str]
    groups: list[int]
    """The indices of the step's groups of unshared rows whose values were sent."""
    summing: Pending[list[Tensor]] | None
    gathering: Pending[list[Tensor]] | None


@dataclass(frozen=True)
class _InFlight:
    """Early or late gradients of a step that were sent, and are not merged and applied yet."""

    step: _Step
    sent: _Sent
    selection: Selection | None = None
    """The rows of the blocks that were sent; None: no blocks were sent."""


class Sync(Exchange):
    """Sums the gradients of all workers, then applies them with `updater`.

    Args:
        updater: holds this worker's replica and applies gradients to it.
        collective: all workers of the run.
        config: codec, selection, hidden fraction and delay.
        seed: seed of stochastic rounding, and of the selection of the hidden blocks' rows.
    """

    def __init__(
        self, updater: Updater, collective: Collective, config: ExchangeConfig, seed: int
    ) -> None:
        self.updater, self.collective = updater, collective
        self.num_summed = collective.size
        self._coded = CodedCollective(collective, config.codec, seed)
        self._everything, self._delay = config.select == "everything", config.delay
        self._hidden = HiddenBlocks(
            updater.blocks, config.hidden_fraction, config.hidden_kind, seed
        )
        self._step_number = 0
        self._next: _Step | None = None
        self._step: _Step | None = None
        self._early: _Sent | None = None
        self._pushed: _InFlight | None = None
        self._late: deque[_InFlight] = deque()
        self._hooks: list[RemovableHandle] = []
        self._dense_bytes = 0.0

    def announce(self, touched: Touched) -> None:
        """Send the ids of the rows that the other workers cannot know."""
        groups = unshared_rows(touched)
        messages = self.collective.all_gather(encode_announcement(groups))
        self._next = _Step(touched, groups, _AnnouncedIds(messages, groups))

    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """This replica's rows."""
        if self._next is None or self._next.touched is not touched:
            self.announce(touched)
        step, self._next = self._next, None
        assert step is not None
        self._step, self._early = step, None
        self._coded.set_step(self._step_number)
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
        while self._hooks:  # rows and hooks refer to each other
            self._hooks.pop().remove()
        early = self._early or self._send(step, step.early(), rows)
        late = self._send(step, step.late(), rows, selection, take_gradients(blocks))
        self._pushed = _InFlight(step, early)
        self._late.append(_InFlight(step, late, selection))
        self._step_number += 1
        self._count_dense()

    def update(self) -> float:
        """See `Exchange`."""
        assert self._pushed is not None, "push comes before update"
        due, self._pushed = [self._pushed], None
        if len(self._late) > self._delay:
            due.append(self._late.popleft())
        return self._apply(due)

    def _apply(self, parts: Sequence[_InFlight]) -> float:
        """Merge these gradients and apply them; returns their norm."""
        merged: dict[str, Tensor] = {}
        merged_ids: dict[str, Tensor | None] = {}
        blocks: dict[str, Tensor] = {}
        for part in parts:
            self._merge(part, merged, merged_ids, blocks)
        return self.updater.apply(Touched(merged_ids), merged, blocks)

    def _merge(
        self,
        part: _InFlight,
        merged: dict[str, Tensor],
        merged_ids: dict[str, Tensor | None],
        blocks: dict[str, Tensor],
    ) -> None:
        """Wait for early or late gradients, and add them to the merged ones."""
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
            self._keep_touched_rows(sent.names, merged, merged_ids)
        elif sent.gathering is not None:
            messages = self._coded.wait(sent.gathering)
            self._add_unshared(own, messages, merged)

    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """See `Exchange`."""
        return self._coded.total(numbers)

    def traffic(self) -> Traffic:
        """See `Exchange`."""
        return self._coded.traffic(self._dense_bytes)

    def flush(self) -> None:
        """Apply the delayed gradients; replicas are identical after every step."""
        while self._late:
            self._apply([self._late.popleft()])
        self.updater.flush()

    def merge_optimizers(self) -> None:
        """Nothing to do: all workers apply the merged gradient, so their state is the same."""

    def state(self) -> ExchangeState:
        """The residuals of the hidden blocks, and what all workers know of them."""
        return ExchangeState(shared=self._hidden.shared_state, own=self._hidden.residuals)

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
        """Send the gradients of these tables and, with a selection, those of the blocks."""
        gradients = {name: _gradient(rows[name]) for name in names}
        if self._everything:
            summed = [self._whole(name, step.touched, gradients[name]) for name in names]
        else:
            summed = [step.shared(name, gradients[name]) for name in names]
        if selection is not None:
            summed += self._selected(selection, blocks)
        indices = [i for i, group in enumerate(step.groups) if group.names[0] in names]
        gathering = None
        if indices and not self._everything:
            own = [
                group.of(gradients[name])
                for group in (step.groups[i] for i in indices)
                for name in group.names
            ]
            lengths = partial(self._unshared_bytes, step, indices)
            gathering = self.collective.all_gather(self._coded.encode(own), lengths)
        # The sum comes last: it takes two rounds, and the gather runs during the first of them.
        summing = self._coded.sum(summed) if summed else None
        return _Sent(names, indices, summing, gathering)

    def _unshared_bytes(self, step: _Step, indices: Sequence[int]) -> list[int]:
        """The number of bytes of every worker's values of the unshared rows of these groups."""
        return [
            self._coded.num_bytes(
                [self._rows_shape(name, ids[i]) for i in indices for name in step.groups[i].names]
            )
            for ids in step.announced.wait()
        ]

    def _rows_shape(self, name: str, ids_O: Tensor) -> Size:
        """The shape of these rows of a table."""
        return Size((len(ids_O), *self.updater.tables[name].shape[1:]))

    def _whole(self, name: str, touched: Touched, gradient: Tensor) -> Tensor:
        """A table's gradient with all its rows, zero where this worker touched nothing."""
        ids = touched.rows[name]
        if ids is None:
            return gradient
        return torch.zeros_like(self.updater.tables[name]).detach().index_copy_(0, ids, gradient)

    def _selected(self, selection: Selection, gradients: Mapping[str, Tensor]) -> list[Tensor]:
        """The rows of every block that are sent; last, a 1 for each block that has a gradient."""
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
        for (name, block), found, num_users in zip(
            blocks, gradients, present.tolist(), strict=True
        ):
            ids = selection[name]
            self._hidden.observe(name, ids, found)
            found = found.to(block.device)
            if ids is not None:
                whole = torch.zeros_like(block).detach()
                merged[name] = whole.index_copy_(0, ids.to(block.device), found)
            elif num_users:
                merged[name] = found
        return merged

    def _keep_touched_rows(
        self,
        names: Sequence[str],
        merged: dict[str, Tensor],
        merged_ids: Mapping[str, Tensor | None],
    ) -> None:
        """Keep, of the sums of whole tables, only the rows that any worker touched."""
        for name in names:
            ids = merged_ids[name]
            merged[name] = merged[name] if ids is None else merged[name].index_select(0, ids)

    def _add_unshared(
        self,
        groups: Sequence[MergedRows],
        messages: Sequence[Tensor],
        merged: dict[str, Tensor],
    ) -> None:
        """Add every worker's unshared rows to the sums of the shared ones."""
        tables = [(group, name) for group in groups for name in group.group.names]
        values_of = []
        for rank, message in enumerate(messages):
            shapes = [self._rows_shape(name, group.ids_of[rank]) for group, name in tables]
            values_of.append(self._coded.decode(message, shapes))
        for index, (group, name) in enumerate(tables):
            merged[name] = group.sum_by_row(merged[name], [values[index] for values in values_of])

    def _count_dense(self) -> None:
        """What this worker would have sent, had all parameters gone in fp32 by an all-reduce."""
        parameters = [*self.updater.tables.values(), *self.updater.blocks.values()]
        W = self.collective.size
        self._dense_bytes += 2 * (W - 1) / W * sum(4 * p.numel() for p in parameters)


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor).detach() if tensor.grad is None else tensor.grad
