"""A worker's side: it pulls what its steps touch, and pushes what they have found.

A worker's parameters are a copy in which only those rows are current that were pulled last. A pull
may be issued long before its rows are needed, one at a time; `fetch` then waits for what has not
arrived yet. A push never waits.

M servers, of which server i holds rows i, i + M, ...; R rows of a group touched, N of them at one
server, H of those sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Size, Tensor

from thinwire.exchange.config import ExchangeConfig
from thinwire.exchange.hidden import HiddenBlocks
from thinwire.exchange.hidden import Selection as HiddenSelection
from thinwire.optim.clipping import clip_gradients
from thinwire.optim.rows import write
from thinwire.parameter_server.connections import Servers
from thinwire.parameter_server.parameter_codec import ParameterCodec
from thinwire.parameter_server.protocol import (
    ABSENT,
    Kind,
    Position,
    Pull,
    Push,
    Report,
    Rows,
    Selection,
    decoded,
    unpacked_mask,
)
from thinwire.parameter_server.requests import Group, RowRequest
from thinwire.parameter_server.sharding import every
from thinwire.seeds import derive
from thinwire.touched import Touched
from thinwire.wire.codecs import make_codec
from thinwire.wire.frames import Frame


@dataclass
class _Awaited:
    """A pull that is under way, and its answers so far."""

    number: int
    wanted: RowRequest
    answers: dict[int, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class _Fetched:
    """What a step computes with, and the number of the last pull that it waited for."""

    number: int
    wanted: RowRequest


class Client:
    """Pulls and pushes.

    A step's rows are pulled ahead, while the step before it computes. When the step begins, the
    blocks are pulled, and those rows that have changed meanwhile; so a step computes with what
    there is after this worker's own last push, and the rows that seldom change do not delay it.

    Args:
        servers: joined already.
        tables: this worker's copy of the parameters that are read row by row, by name.
        blocks: that of the others.
        config: codec, selection and hidden fraction.
        clip: largest global norm of a step's gradient; 0: none.
        seed: of stochastic rounding and of the hidden blocks that travel; each worker's own.
    """

    def __init__(
        self,
        servers: Servers,
        tables: Mapping[str, Tensor],
        blocks: Mapping[str, Tensor],
        config: ExchangeConfig,
        clip: float,
        seed: int,
    ) -> None:
        self.servers, self.tables, self.blocks = servers, tables, blocks
        self.factor = 1.0
        self.too_old = 0
        """How many pushes came too late and were dropped."""
        self._clip, self._seed = clip, seed
        self._parameters = {**tables, **blocks}
        self._names = list(self._parameters)
        self._codec, self._parameter_codec = make_codec(config.codec), ParameterCodec(config.codec)
        self._everything = config.select == "everything"
        kind = config.hidden_kind
        self._hidden = HiddenBlocks(blocks, config.hidden_fraction, kind, derive(seed, "hidden"))
        # Of rows that do not travel in a step it needs the values even so.
        self._lacks_blocks = config.hidden_fraction < 1.0
        self._num_pulls = self._num_pushes = self._held = self._num_steps = 0
        self._wanted_next: RowRequest | None = None
        self._awaited: _Awaited | None = None
        self._fetched: _Fetched | None = None

    def take_over_feedback(self, before: Client) -> None:
        """Go on with the gradients that wait for their turn in this worker's client of before."""
        self._hidden.load(before._hidden.residuals, before._hidden.shared_state)

    # Pulling

    def pull_rows(self, touched: Touched) -> None:
        """Ask for the rows of the next step, and return at once; `fetch` asks for what is missing.

        With `select = everything`, `fetch` asks for all.
        """
        self._wanted_next = self._wanted(touched, self._selected())
        if not self._everything:
            self._ask(self._wanted_next.only(self._names, self.tables))

    def _ask(self, wanted: RowRequest) -> None:
        self._num_pulls += 1
        self._awaited = _Awaited(self._num_pulls, wanted)
        incarnation, number = self.servers.incarnation, self._num_pulls
        for index in range(len(self.servers.connections)):
            selection = self._pulled(wanted, index)
            pull = Pull(incarnation, number, self._held, self._everything, selection)
            self.servers.send(index, pull.pack())

    def _pulled(self, wanted: RowRequest, index: int) -> Selection:
        if self._everything:
            P = len(self._names)
            return Selection(tuple(range(P)), (None,) * P)
        return wanted.selection(index, len(self.servers.connections))[0]

    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """The touched rows of each table, `[R, ...]`, as leaves that collect gradients.

        What was pulled ahead is waited for; then all is asked for, and what has changed is sent.
        Where only some rows of the blocks travel in a step, the first one is preceded by all.
        """
        wanted, self._wanted_next = self._wanted_next, None
        if wanted is None or wanted.touched is not touched:
            wanted = self._wanted(touched, self._selected())
        for index in range(len(self.servers.connections)):
            while (message := self.servers.arrived(index)) is not None:
                self._take(index, *message)
        if self._awaited is not None:
            self._receive()
        if self._lacks_blocks:
            self._lacks_blocks = False
            all_blocks = self._wanted(touched, dict.fromkeys(self.blocks))
            self._ask(all_blocks.only(self._names, self.blocks))
            self._receive()
        self._ask(wanted)
        self._receive()
        self._fetched = _Fetched(self._held, wanted)
        return {
            name: _gathered(self.tables[name].detach(), ids).requires_grad_()
            for name, ids in touched.rows.items()
        }

    def _receive(self) -> None:
        """Wait for every server's answer to the pull under way, and make its rows current."""
        awaited = self._awaited
        assert awaited is not None
        try:
            for index in range(len(self.servers.connections)):
                while index not in awaited.answers:
                    self._take(index, *self.servers.wait(index))
        finally:  # whether they came or not, nothing is under way any more
            self._awaited = None
        for index, rows in awaited.answers.items():
            self._write(rows, self._pulled(awaited.wanted, index), index)
        self.factor = awaited.answers[0].factor
        self._held = awaited.number

    def _take(self, index: int, kind: Kind, frame: Frame) -> None:
        """A message of server `index`; an answer to an earlier pull is left alone."""
        if kind is Kind.TOO_OLD:
            self.too_old += 1
        if kind is Kind.ROWS and self._awaited is not None:
            with suppress(ValueError):
                selection = self._pulled(self._awaited.wanted, index)
                rows = Rows.read(frame, len(selection.ids))
                if rows.number == self._awaited.number:
                    self._awaited.answers[index] = rows

    @torch.no_grad()
    def _write(self, rows: Rows, selection: Selection, index: int) -> None:
        """Put the rows that server `index` has sent into this worker's copy."""
        M = len(self.servers.connections)
        masks: list[Tensor | None] = []
        for group, (mask, ids_N) in enumerate(zip(rows.masks, selection.ids, strict=True)):
            N = self._num_rows(selection, group, index) if ids_N is None else len(ids_N)
            masks.append(unpacked_mask(mask, N) if len(mask) else None)
        for (parameter, group), data in zip(selection.present(), rows.values, strict=True):
            name, mask_N, ids_N = self._names[parameter], masks[group], selection.ids[group]
            target = self._parameters[name].detach()
            if mask_N is not None:
                all_N = torch.arange(len(mask_N)) if ids_N is None else ids_N
                ids_H = None if ids_N is None and bool(mask_N.all()) else all_N[mask_N]
            else:
                ids_H = ids_N
            if name in self.blocks:
                self._parameter_codec.change(target[index::M], ids_H, data, whole=rows.whole)
                continue
            codec = self._parameter_codec.whole
            if ids_H is None:
                own = target[index::M]
                own.copy_(decoded(codec, data, own.shape))
                continue
            values = decoded(codec, data, Size((len(ids_H), *target.shape[1:])))
            whole_ids = (ids_H * M + index).to(target.device)
            write(target, whole_ids, on_device(values, target.device))

    def _num_rows(self, selection: Selection, group: int, index: int) -> int:
        parameter = selection.group_of.index(group)
        return len(self._parameters[self._names[parameter]][index :: len(self.servers.connections)])

    # Pushing

    @torch.no_grad()
    def push(
        self, rows: Mapping[str, Tensor], loss: float, num_targets: int, position: Position
    ) -> float:
        """Send the gradients of the fetched rows and of the blocks (in their `grad`); never wait.

        Args:
            rows: what `fetch` returned, with its gradients.
            loss: the step's mean loss in nats a token.
            num_targets: its tokens.
            position: how far this worker has read with this step.

        Returns:
            The global norm of the gradient, before clipping.
        """
        assert self._fetched is not None, "fetch comes before push"
        fetched, self._fetched = self._fetched, None
        gradients = {name: leaf.grad for name, leaf in rows.items() if leaf.grad is not None}
        dense = {name: b.grad for name, b in self.blocks.items() if b.grad is not None}
        norm = float(clip_gradients([*gradients.values(), *dense.values()], self._clip))
        for name, gradient in dense.items():
            ids = fetched.wanted.blocks[name]
            gradients[name] = self._hidden.compensate(name, gradient, ids)
            self._hidden.observe(name, ids, gradients[name])
            self.blocks[name].grad = None
        self._num_pushes += 1
        values = {name: on_host(gradient) for name, gradient in gradients.items()}
        report = Report(loss, norm, num_targets, position, self.servers.account())
        for index in range(len(self.servers.connections)):
            self.servers.send(index, self._packed(fetched, values, report, index))
        return norm

    def _packed(
        self, fetched: _Fetched, gradients: Mapping[str, Tensor], report: Report, index: int
    ) -> Tensor:
        M, wanted = len(self.servers.connections), fetched.wanted
        selection, places = wanted.selection(index, M)
        group_of = tuple(
            group if name in gradients else ABSENT
            for name, group in zip(self._names, selection.group_of, strict=True)
        )
        selection = Selection(group_of, selection.ids)
        seed = derive(self._seed, "rounding", str(index), self._num_pushes)
        values = []
        for parameter, group in selection.present():
            name = self._names[parameter]
            gradient, places_N = gradients[name], places[group]
            if places_N is None:
                gradient = every(gradient, index, M)
            elif self._everything:
                whole = torch.zeros(self._parameters[name].shape)
                touched_ids = wanted.touched.rows[name]
                assert touched_ids is not None
                gradient = every(whole.index_copy_(0, touched_ids.cpu(), gradient), index, M)
            else:
                gradient = gradient.index_select(0, places_N)
            values.append(self._codec.encode(gradient, seed))
        return Push(
            self.servers.incarnation,
            self._num_pushes,
            fetched.number,
            self._everything,
            self.factor,
            report,
            selection,
            tuple(values),
        ).pack()

    def _selected(self) -> HiddenSelection:
        """The rows of the blocks that travel in the next step."""
        self._num_steps += 1
        return self._hidden.select(self._num_steps - 1)

    def _wanted(self, touched: Touched, blocks: HiddenSelection) -> RowRequest:
        group_of: dict[str, int] = {}
        groups: list[Group | None] = []
        for names, ids_R in [*touched.groups(), *(((n,), ids) for n, ids in blocks.items())]:
            group_of |= dict.fromkeys(names, len(groups))
            groups.append(None if ids_R is None else Group(*ids_R.cpu().sort()))
        numbers = tuple(group_of.get(name, ABSENT) for name in self._names)
        return RowRequest(touched, blocks, numbers, tuple(groups))


def on_host(values: Tensor) -> Tensor:
    """The values in the host's memory, pinned, so that the copy runs at the bus's speed.

    Not tried on CUDA.
    """
    if values.device.type != "cuda":
        return values.cpu()
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return pinned


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device, by way of pinned memory. Not tried on CUDA."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _gathered(table: Tensor, ids: Tensor | None) -> Tensor:
    return table.view_as(table) if ids is None else table.index_select(0, ids)
