"""One server's rows: what is pulled from them, and what is pushed to them. Sends no messages.

A server counts its updates; the count is its **version**. It stamps each row with the version that
changed the row last, and remembers for each worker the version of each row that the worker has. So
it answers a pull with only the rows that have changed since.

n rows of a parameter on this server, R rows in a request, H of them newer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from thinwire.exchange.config import ExchangeConfig
from thinwire.optim.updater import Updater
from thinwire.parameter_server.accumulation import Gradient, GradientBuffer
from thinwire.parameter_server.fields import decoded, packed_mask
from thinwire.parameter_server.parameter_codec import ParameterCodec
from thinwire.parameter_server.protocol import Pull, Push, Rows
from thinwire.parameter_server.snapshot import Snapshot
from thinwire.parameter_server.staleness import Staleness
from thinwire.touched import Touched
from thinwire.wire.codecs import make_codec

# A worker has the pulls of two steps under way, two each, and more after a push that came too late.
PULLS_REMEMBERED = 6
NEVER = -1
# A gradient of a larger norm is no worker's: rounding to int4 and error feedback make a clipped one
# several times longer, and not a hundred times; squares of a longer one overflow fp32.
CLIP_MARGIN = 100.0
LARGEST_NORM = 1e15


class Unusable(ValueError):
    """Gradients that cannot be applied: not finite, or with a norm that no worker can send."""


@dataclass
class Held:
    """What a server knows of one worker.

    Attributes:
        stamps: the version of every row that the worker has.
        blocks: a copy of the blocks that the worker has, if differences to them are sent.
        answered: the version at which each of its last pulls was answered.
        last_answer: the last of these pulls.
    """

    stamps: dict[str, Tensor] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)
    answered: dict[int, int] = field(default_factory=dict)
    last_answer: int = 0


class Shard:
    """Parameters, or every M-th row of them, with the optimisers that update them.

    Args:
        updater: holds them; its `clip` is the norm to which workers clip a step's gradient.
        config: codec, bound of staleness, hidden fraction, and how many pushes make an update.
    """

    def __init__(self, updater: Updater, config: ExchangeConfig) -> None:
        self.updater, self.config = updater, config
        self.tables, self.blocks = updater.tables, updater.blocks
        self.parameters: dict[str, nn.Parameter] = {**self.tables, **self.blocks}
        self.row_optimizer, self.dense_optimizer = updater.row_optimizer, updater.dense_optimizer
        self.version = 0
        self.factor = 1.0
        """What learning rates are multiplied by; whoever steers the run sets it."""
        self._names = list(self.parameters)
        self._changed = {n: torch.zeros(len(p), dtype=torch.int32) for n, p in _items(self)}
        self._codec, self._parameter_codec = make_codec(config.codec), ParameterCodec(config.codec)
        self._buffer = GradientBuffer()
        self._largest_norm = LARGEST_NORM
        if updater.clip:
            # Rows of blocks that wait for their turn pile up gradients of several steps.
            self._largest_norm = CLIP_MARGIN * updater.clip / config.hidden_fraction

    @property
    def num_rows(self) -> list[int]:
        """How many rows each parameter has here."""
        return [len(parameter) for parameter in self.parameters.values()]

    @torch.no_grad()
    def pull(self, held: Held, pull: Pull) -> Rows | None:
        """The answer to a pull; None if this pull or a later one was answered already.

        Raises:
            ValueError: one group has parameters with different numbers of rows, or no parameter.
        """
        if pull.number <= held.last_answer:
            return None
        self._check_groups(pull)  # first, so that an error leaves everything unchanged
        if pull.held != held.last_answer:
            held.stamps.clear()  # an answer was lost: who knows what this worker holds
        held.last_answer = pull.number
        self._remember(held, pull)
        whole = self._lacks_blocks(held, pull)
        masks, values = [], []
        newer = [self._newer(held, pull, group) for group in range(len(pull.selection.ids))]
        for (mask_R, _), ids_R in zip(newer, pull.selection.ids, strict=True):
            all_sent = pull.everything and ids_R is None
            masks.append(torch.empty(0).byte() if all_sent else packed_mask(mask_R))
        for index, group in pull.selection.present():
            _, ids_H = newer[group]
            values.append(self._encoded(held, self._names[index], ids_H, whole=whole))
        return Rows(
            pull.incarnation,
            pull.number,
            self.version,
            self.factor,
            whole,
            tuple(masks),
            tuple(values),
        )

    def _check_groups(self, pull: Pull) -> None:
        for group, ids_R in enumerate(pull.selection.ids):
            rows = {self.num_rows[p] for p, g in pull.selection.present() if g == group}
            if not rows:
                raise ValueError("a group of rows of no parameter")
            if ids_R is None and len(rows) > 1:
                raise ValueError("parameters with different numbers of rows stand in one group")

    def _lacks_blocks(self, held: Held, pull: Pull) -> bool:
        """Whether the pull asks for rows of blocks that this worker has never received."""
        for index, group in pull.selection.present():
            name, ids_R = self._names[index], pull.selection.ids[group]
            if name in self.blocks and (
                name not in held.stamps or bool((_rows(held.stamps[name], ids_R) == NEVER).any())
            ):
                return True
        return False

    def _encoded(self, held: Held, name: str, ids_H: Tensor | None, *, whole: bool) -> Tensor:
        """Rows of a parameter, encoded for this worker."""
        codec = self._parameter_codec
        if name in self.tables:
            table = self.tables[name]
            ids = None if ids_H is None else ids_H.to(table.device)
            return codec.whole.encode(self.row_optimizer.rows(table, ids))
        values = _rows(self.blocks[name].detach(), ids_H)
        if codec.differences is None:
            return codec.whole.encode(values)
        if name not in held.blocks:
            held.blocks[name] = torch.empty_like(self.blocks[name].detach())
        copy = held.blocks[name]
        sent = values if whole else values - _rows(copy, ids_H)
        data = codec.of_blocks(whole=whole).encode(sent)
        codec.change(copy, ids_H, data, whole=whole)
        return data

    def begins_step(self, pull: Pull) -> bool:
        """Whether this pull begins a step; a pull ahead of a step asks for rows of tables only."""
        return any(self._names[index] not in self.tables for index, _ in pull.selection.present())

    def _newer(self, held: Held, pull: Pull, group: int) -> tuple[Tensor, Tensor | None]:
        """Which rows of a group have changed since this worker received them: a mask, and ids."""
        ids_R = pull.selection.ids[group]
        mask_R: Tensor | None = None
        for index in (p for p, g in pull.selection.present() if g == group):
            name = self._names[index]
            stamps = held.stamps.get(name)
            if stamps is None:
                stamps = torch.full((len(self.parameters[name]),), NEVER, dtype=torch.int32)
                held.stamps[name] = stamps
            found_R = _rows(self._changed[name], ids_R) > _rows(stamps, ids_R)
            mask_R = found_R if mask_R is None else mask_R | found_R
            stamps[slice(None) if ids_R is None else ids_R] = self.version
        assert mask_R is not None, "a group of rows of no parameter has been refused"
        if pull.everything or bool(mask_R.all()):
            return mask_R.fill_(True), ids_R
        return mask_R, mask_R.nonzero().squeeze(1) if ids_R is None else ids_R[mask_R]

    def _remember(self, held: Held, pull: Pull) -> None:
        held.answered[pull.number] = self.version
        for number in sorted(held.answered)[:-PULLS_REMEMBERED]:
            del held.answered[number]

    @torch.no_grad()
    def push(self, held: Held, push: Push) -> Staleness | None:
        """Add the gradients of a push; None if the push came too late, and nothing was changed.

        Raises:
            ValueError: the gradients do not have the shape of their rows, or cannot be applied.
        """
        gradients = self._decoded(push)
        self._check(gradients)
        answered = held.answered.get(push.pull)
        if answered is None:
            return None
        tau, bound = self.version - answered, self.config.staleness_bound
        if bound and tau > bound:
            return None
        staleness = Staleness(tau, self._changed_rows(gradients, answered))
        self._buffer.add(gradients)
        if self._buffer.size >= self.config.accumulate:
            self._update(self._buffer.take())
        return staleness

    @torch.no_grad()
    def flush(self) -> None:
        """Apply collected gradients and due weight decay permanently, at the end of a run."""
        if self._buffer.size:
            self._update(self._buffer.take())
        self.row_optimizer.flush()

    @contextmanager
    def flushed(self) -> Iterator[None]:
        """A context in which parameters are as after `flush`; on leaving it they are restored.

        Evaluations and saves use it, so their times do not influence the training. Nothing may be
        pulled or pushed inside.
        """
        kept, version, buffer = Snapshot(), self.version, self._buffer.copy()
        waiting = buffer.rows()
        for name, table in self.tables.items():
            kept.keep_table(self.row_optimizer, table, name in waiting, waiting.get(name))
        for name, ids_R in waiting.items():
            kept.keep(self._changed[name], ids_R if name in self.tables else None)
        if waiting:
            kept.keep_blocks(self.dense_optimizer, self.blocks.values())
        try:
            self.flush()
            yield
        finally:
            kept.restore()
            self.version, self._buffer = version, buffer

    def drop_gradients(self) -> None:
        """Forget the gradients that wait to be applied."""
        self._buffer.take()

    def _check(self, gradients: Mapping[str, Gradient]) -> None:
        squares = [float(torch.linalg.vector_norm(g)) ** 2 for _, g in gradients.values()]
        norm = sum(squares) ** 0.5
        if not norm <= self._largest_norm:  # also where it is NaN
            raise Unusable(f"the gradient's norm is {norm:g}")

    def _decoded(self, push: Push) -> dict[str, Gradient]:
        gradients: dict[str, Gradient] = {}
        pairs = zip(push.selection.present(), push.values, strict=True)
        for (index, group), data in pairs:
            name, ids_R = self._names[index], push.selection.ids[group]
            parameter = self.parameters[name]
            shape = parameter.shape
            if ids_R is not None and not push.everything:
                shape = torch.Size((len(ids_R), *shape[1:]))
            values = decoded(self._codec, data, shape).to(parameter.device)
            gradients[name] = ids_R, _rows(values, ids_R) if push.everything else values
        return gradients

    def _changed_rows(self, gradients: Mapping[str, Gradient], version: int) -> float:
        changed = [
            _rows(self._changed[name], ids) > version
            for name, (ids, _) in gradients.items()
            if name in self.tables
        ]
        together = torch.cat(changed) if changed else torch.empty(0)
        return float(together.float().mean()) if len(together) else 0.0

    def _update(self, gradients: Mapping[str, Gradient]) -> None:
        self.version += 1
        self.updater.set_rates(self.factor)
        touched: dict[str, Tensor | None] = {}
        rows: dict[str, Tensor] = {}
        blocks: dict[str, Tensor] = {}
        for name, (ids_R, values) in gradients.items():
            parameter = self.parameters[name]
            if name in self.tables:
                touched[name] = None if ids_R is None else ids_R.to(parameter.device)
                rows[name] = values
                self._changed[name][slice(None) if ids_R is None else ids_R] = self.version
            else:
                blocks[name] = _whole(parameter, ids_R, values)
                # Whole, for its optimiser also moves on what has no gradient.
                self._changed[name].fill_(self.version)
        self.updater.update(Touched(touched), rows, blocks)


def _items(shard: Shard) -> list[tuple[str, nn.Parameter]]:
    return list(shard.parameters.items())


def _rows(values: Tensor, ids_R: Tensor | None) -> Tensor:
    return values if ids_R is None else values.index_select(0, ids_R.to(values.device))


def _whole(block: Tensor, ids_R: Tensor | None, values: Tensor) -> Tensor:
    if ids_R is None:
        return values
    return torch.zeros_like(block).index_copy_(0, ids_R.to(block.device), values)
