"""A worker's side: pulls the rows that its steps touch, and pushes their gradients.

In a worker's copy of the parameters, only the rows of the last pull are current. A pull can be sent
long before its rows are needed; only one is under way at a time. `fetch` waits for the answers that
have not arrived yet. A push never waits.

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
from thinwire.parameter_server.fields import decoded, unpacked_mask
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
)
from thinwire.parameter_server.requests import Group, RowRequest
from thinwire.parameter_server.sharding import every
from thinwire.seeds import derive
from thinwire.touched import Touched
from thinwire.wire.codecs import make_codec
from thinwire.wire.frames import Frame


@dataclass
class _PendingPull:
    """A pull that is under way, and the answers that have arrived."""

    number: int
    request: RowRequest
    answers: dict[int, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class _Fetched:
    """The rows that a step uses, and the number of the last pull that it waited for."""

    number: int
    request: RowRequest


class Client:
    """Pulls and pushes.

    The rows of a step are pulled ahead, while the previous step computes. When the step begins, the
    blocks are pulled, and the rows that have changed meanwhile. So a step uses the parameters after
    this worker's own last push (unless servers collect pushes, `exchange.accumulate`), and rows
    that seldom change do not delay it.

    Args:
        servers: the run's servers, after `join`.
        tables: this worker's copy of the parameters that are read row by row, by name.
        blocks: this worker's copy of the other parameters, by name.
        config: codec, selection and hidden fraction.
        clip: largest global norm of a step's gradient; 0: none.
        seed: of stochastic rounding and of the choice of hidden blocks; different for each worker.
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
        """How many pushes were not applied: too late, or refused."""
        self._clip, self._seed = clip, seed
        self._parameters = {**tables, **blocks}
        self._names = list(self._parameters)
        self._codec, self._parameter_codec = make_codec(config.codec), ParameterCodec(config.codec)
        self._everything = config.select == "everything"
        kind = config.hidden_kind
        self._hidden = HiddenBlocks(blocks, config.hidden_fraction, kind, derive(seed, "hidden"))
        # A step also needs the block rows that it does not exchange: all are pulled once at first.
        self._lacks_blocks = config.hidden_fraction < 1.0
        self._num_pulls = self._num_pushes = self._held = self._num_steps = 0
        self._next_request: RowRequest | None = None
        self._pending: _PendingPull | None = None
        self._fetched: _Fetched | None = None

    def take_over_feedback(self, before: Client) -> None:
        """Take over the residual of error feedback from this worker's previous client."""
        self._hidden.load(before._hidden.residuals, before._hidden.shared_state)

    # Pulling

    def pull_rows(self, touched: Touched) -> None:
        """Request the rows of the next step, and return at once; `fetch` requests the rest.

        With `select = everything`, `fetch` requests everything.
        """
        self._next_request = self._row_request(touched, self._selected())
        if not self._everything:
            self._send_pull(self._next_request.only(self._names, self.tables))

    def _send_pull(self, request: RowRequest) -> None:
        self._num_pulls += 1
        self._pending = _PendingPull(self._num_pulls, request)
        incarnation, number = self.servers.incarnation, self._num_pulls
        for index in range(len(self.servers.connections)):
            selection = self._selection(request, index)
            pull = Pull(incarnation, number, self._held, self._everything, selection)
            self.servers.send(index, pull.pack())

    def _selection(self, request: RowRequest, index: int) -> Selection:
        if self._everything:
            P = len(self._names)
            return Selection(tuple(range(P)), (None,) * P)
        return request.selection(index, len(self.servers.connections))[0]

    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """The touched rows of each table, `[R, ...]`, as leaves that collect gradients.

        It waits for the rows that were pulled ahead, then requests all rows of the step; servers
        send those that have changed. If only some rows of the blocks are exchanged per step, all
        blocks are pulled before the first step.
        """
        request, self._next_request = self._next_request, None
        if request is None or request.touched is not touched:
            request = self._row_request(touched, self._selected())
        for index in range(len(self.servers.connections)):
            while (message := self.servers.poll(index)) is not None:
                self._handle(index, *message)
        if self._pending is not None:
            self._receive()
        if self._lacks_blocks:
            self._lacks_blocks = False
            all_blocks = self._row_request(touched, dict.fromkeys(self.blocks))
            self._send_pull(all_blocks.only(self._names, self.blocks))
            self._receive()
        self._send_pull(request)
        self._receive()
        self._fetched = _Fetched(self._held, request)
        return {
            name: _gathered(self.tables[name].detach(), ids).requires_grad_()
            for name, ids in touched.rows.items()
        }

    def _receive(self) -> None:
        """Wait for every server's answer to the pull under way, and store its rows."""
        pending = self._pending
        assert pending is not None
        try:
            for index in range(len(self.servers.connections)):
                while index not in pending.answers:
                    self._handle(index, *self.servers.wait(index))
        finally:  # whether they came or not, nothing is under way any more
            self._pending = None
        for index, rows in pending.answers.items():
            self._write(rows, self._selection(pending.request, index), index)
        self.factor = pending.answers[0].factor
        self._held = pending.number

    def _handle(self, index: int, kind: Kind, frame: Frame) -> None:
        """Handle a message of server `index`; answers to earlier pulls are ignored."""
        if kind is Kind.TOO_OLD:
            self.too_old += 1
        if kind is Kind.ROWS and self._pending is not None:
            with suppress(ValueError):
                selection = self._selection(self._pending.request, index)
                rows = Rows.read(frame, len(selection.ids))
                if rows.number == self._pending.number:
                    self._pending.answers[index] = rows

    @torch.no_grad()
    def _write(self, rows: Rows, selection: Selection, index: int) -> None:
        """Store the rows that server `index` has sent in this worker's copy."""
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
            loss: the step's mean loss in nats per token.
            num_targets: the number of targets of the step.
            position: how far this worker has read after this step.

        Returns:
            The global norm of the gradient, before clipping.
        """
        assert self._fetched is not None, "fetch comes before push"
        fetched, self._fetched = self._fetched, None
        gradients = {name: leaf.grad for name, leaf in rows.items() if leaf.grad is not None}
        dense = {name: b.grad for name, b in self.blocks.items() if b.grad is not None}
        norm = float(clip_gradients([*gradients.values(), *dense.values()], self._clip))
        for name, gradient in dense.items():
            ids = fetched.request.blocks[name]
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
        M, request = len(self.servers.connections), fetched.request
        selection, positions = request.selection(index, M)
        group_of = tuple(
            group if name in gradients else ABSENT
            for name, group in zip(self._names, selection.group_of, strict=True)
        )
        selection = Selection(group_of, selection.ids)
        seed = derive(self._seed, "rounding", str(index), self._num_pushes)
        values = []
        for parameter, group in selection.present():
            name = self._names[parameter]
            gradient, positions_N = gradients[name], positions[group]
            if positions_N is None:
                gradient = every(gradient, index, M)
            elif self._everything:
                whole = torch.zeros(self._parameters[name].shape)
                touched_ids = request.touched.rows[name]
                assert touched_ids is not None
                gradient = every(whole.index_copy_(0, touched_ids.cpu(), gradient), index, M)
            else:
                gradient = gradient.index_select(0, positions_N)
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
        """The rows of the blocks that are exchanged in the next step."""
        self._num_steps += 1
        return self._hidden.select(self._num_steps - 1)

    def _row_request(self, touched: Touched, blocks: HiddenSelection) -> RowRequest:
        group_of: dict[str, int] = {}
        groups: list[Group | None] = []
        for names, ids_R in [*touched.groups(), *(((n,), ids) for n, ids in blocks.items())]:
            group_of |= dict.fromkeys(names, len(groups))
            groups.append(None if ids_R is None else Group(*ids_R.cpu().sort()))
        numbers = tuple(group_of.get(name, ABSENT) for name in self._names)
        return RowRequest(touched, blocks, numbers, tuple(groups))


def on_host(values: Tensor) -> Tensor:
    """The values in the host's memory, pinned so that the copy has the speed of the bus.

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
