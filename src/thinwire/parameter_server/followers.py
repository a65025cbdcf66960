"""Several servers of one run: the first one leads, and the others follow.

Each holds every M-th row of every parameter, and answers the workers' pulls and pushes of those
rows. The first server also keeps the record. Once a second it sends LEAD to each of the others:
which run they serve. A follower answers with STATUS: whether it is ready. One that was started, or
restarted, is not ready; the first server then sends it its rows (LOAD) from its own memory: the
parameters of the last evaluation or save, and the optimiser's state of the last save. Before
evaluating and saving, the first server asks each for its rows (COLLECT) and receives them
(COLLECTED). When the run ends, it sends END.

A follower sends rows only when it is ready, and only for the run that asks. Messages to one server
arrive in order. LEAD names the request that is under way, and STATUS repeats it. If STATUS repeats
a request and no COLLECTED came before it, then the request or its answer was lost, or the follower
had no rows to send. The request is then sent again, after the follower has its rows.

A follower that was asked to stop says so in STATUS. The first server then collects at once, and
LEAD tells the follower that its rows have arrived.

Followers take the factor of their learning rates from the workers' pushes; workers have it from the
first server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from thinwire import __version__
from thinwire.errors import UserError
from thinwire.parameter_server.finite import check_finite
from thinwire.parameter_server.protocol import (
    PROTOCOL,
    Kind,
    json_message,
    json_of,
    read_message,
    text_of,
)
from thinwire.parameter_server.serving_loop import POLL_SECONDS
from thinwire.parameter_server.session import ALIVE_SECONDS
from thinwire.parameter_server.shard import Shard
from thinwire.parameter_server.sharding import (
    MODEL,
    contents,
    cut,
    described,
    load_shard,
    merged,
    optimizers_of,
    parameters_of,
    restored,
)
from thinwire.runs.run import Run
from thinwire.transport.messages import Connection
from thinwire.transport.timeouts import RENDEZVOUS_SECONDS
from thinwire.wire.frames import Frame


class Followers:
    """The other servers of a run, as the first one sees them.

    Args:
        connections: to the other servers, in the order of their shards, from shard 1 on.
        run: the run; its model receives the collected rows.
        shard: the first server's own rows.
        run_id: the run's name.
        settings: all settings of the run, as JSON has them.
        warn: prints a sentence for people.
        rendezvous_seconds: the least time that the others have to answer: one that was restarted
            needs more time to start than to answer.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        run: Run,
        shard: Shard,
        run_id: str,
        settings: Mapping[str, Any],
        warn: Callable[[str], None],
        rendezvous_seconds: float = RENDEZVOUS_SECONDS,
    ) -> None:
        self.connections, self.run, self.shard = connections, run, shard
        self._lead = {
            "protocol": PROTOCOL,
            "thinwire": __version__,
            "data": run.corpus.meta.fingerprint,
            "run": run_id,
            "num_shards": 1 + len(connections),
            "settings": settings,
        }
        self._warn = warn
        self._rendezvous_seconds = max(run.config.exchange.timeout_seconds, rendezvous_seconds)
        self._ready = [False] * len(connections)
        self._was_ready = [False] * len(connections)
        # For each follower, the run's token count when its rows were last collected.
        self._tokens_kept = [run.tokens] * len(connections)
        self._last_heard = [monotonic()] * len(connections)
        self._lead_due = 0.0
        self._num_requests = 0
        # For each follower the request that is under way, and what it has answered.
        self._pending: list[int | None] = [None] * len(connections)
        self._collected: dict[int, dict[str, Tensor]] = {}
        self._optimizers = False
        self._leaving = [False] * len(connections)
        self._handover_done = [False] * len(connections)

    def wait_until_ready(self, stopping: Callable[[], bool]) -> None:
        """Load this server's own rows, then wait until all others are ready.

        Raises:
            UserError: a server refuses, or does not answer in time; or the model is not finite.
        """
        parameters, optimizers = self._rows_of(0)
        try:
            load_shard(self.shard, parameters, optimizers)
        except ValueError as error:
            raise UserError(f"this model cannot be served: {error}") from None
        self._last_heard = [monotonic()] * len(self.connections)
        while not all(self._ready) and not stopping():
            self.poll(POLL_SECONDS)
            self._check_ready()

    def _check_ready(self) -> None:
        for connection, ready, heard in zip(
            self.connections, self._ready, self._last_heard, strict=True
        ):
            if not ready and monotonic() - heard > self._rendezvous_seconds:
                raise UserError(
                    f"the server {connection.server} has not answered for "
                    f"{self._rendezvous_seconds:g} seconds: is it running, and has it the same key?"
                )

    def poll(self, timeout_seconds: float = 0.0) -> None:
        """Send LEAD once a second, read the answers, and send rows to servers that are not ready.

        Raises:
            UserError: a server refuses.
        """
        if monotonic() >= self._lead_due:
            self._lead_due = monotonic() + ALIVE_SECONDS
            for index in range(len(self.connections)):
                self._send_lead(index)
        for index, connection in enumerate(self.connections):
            while (message := connection.receive(timeout_seconds)) is not None:
                timeout_seconds = 0.0
                with suppress(ValueError, KeyError, TypeError):
                    self._handle(index, *read_message(message))

    def _send_lead(self, index: int) -> None:
        lead = self._lead | {
            "shard": index + 1,
            "request": self._pending[index],
            "handed_over": self._handover_done[index],
        }
        self.connections[index].send(json_message(Kind.LEAD, lead))

    def _handle(self, index: int, kind: Kind, frame: Frame) -> None:
        self._last_heard[index] = monotonic()
        if kind is Kind.REFUSED:
            raise UserError(text_of(frame))
        if kind is Kind.COLLECTED:
            content = json_of(frame)
            if content["request"] == self._pending[index]:
                self._collected[index] = restored(content["tensors"], frame.parts[1:])
        if kind is Kind.STATUS:
            self._update_status(index, json_of(frame))

    def _update_status(self, index: int, status: Mapping[str, Any]) -> None:
        """Take in a follower's STATUS."""
        self._leaving[index] = bool(status["leaving"])
        self._handover_done[index] &= self._leaving[index]
        self._ready[index] = bool(status["ready"])
        if not self._ready[index]:
            if self._was_ready[index]:
                self._was_ready[index] = False
                self._count_loss(index)
            parameters, optimizers = self._rows_of(index + 1)
            held = {f"{MODEL}{n}": t for n, t in parameters.items()} | optimizers
            content = {"run": self._lead["run"], "tensors": described(held)}
            self.connections[index].send(json_message(Kind.LOAD, content, contents(held)))
        else:
            self._was_ready[index] = True
        lost = status["request"] is not None and status["request"] == self._pending[index]
        if lost and index not in self._collected:
            self._request(index)

    def _count_loss(self, index: int) -> None:
        """Count what a restarted follower lost: 1 / M of the training since its last collection."""
        lost = (self.run.tokens - self._tokens_kept[index]) // (1 + len(self.connections))
        self._tokens_kept[index] = self.run.tokens
        made_up = ", and the run trains as many more" if self.run.lose(lost) else ""
        self._warn(
            f"the server {self.connections[index].server} has been started again; its rows are "
            f"those of the last evaluation or save: the training of {lost:,} tokens is lost"
            f"{made_up}"
        )

    @property
    def handover_due(self) -> bool:
        """Whether a follower was asked to stop and its rows were not collected since."""
        return any(
            leaving and not handed_over
            for leaving, handed_over in zip(self._leaving, self._handover_done, strict=True)
        )

    def _rows_of(self, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        run, M = self.run, 1 + len(self.connections)
        parameters = {n: p.detach() for n, p in (*run.tables.items(), *run.blocks.items())}
        return cut(parameters, index, M), cut(run.optimizer_state(), index, M)

    def collect(self, *, optimizers: bool) -> None:
        """Copy the rows of all servers into the run's model and, on request, its optimisers.

        A follower that is restarted meanwhile first receives its rows.

        Raises:
            UserError: a server refuses, or is silent for too long; nothing was changed.
        """
        self._optimizers = optimizers
        self._collected.clear()
        for index in range(len(self.connections)):
            self._last_heard[index] = monotonic()
            self._request(index)
        try:
            while len(self._collected) < len(self.connections):
                self.poll(POLL_SECONDS)
                self._check_silence()
        except UserError:
            self._leaving = [False] * len(self.connections)  # until one says so again
            raise
        finally:
            self._pending = [None] * len(self.connections)
        own = {f"{MODEL}{n}": t for n, t in parameters_of(self.shard).items()}
        own |= optimizers_of(self.shard) if optimizers else {}
        whole = merged([own, *(self._collected[index] for index in range(len(self.connections)))])
        self._collected.clear()
        check_finite(
            {n.removeprefix(MODEL): t for n, t in whole.items() if n.startswith(MODEL)},
            self.run.step,
        )
        with torch.no_grad():
            for name, parameter in {**self.run.tables, **self.run.blocks}.items():
                parameter.copy_(whole.pop(f"{MODEL}{name}"))
        self._tokens_kept = [self.run.tokens] * len(self.connections)
        if optimizers:
            self.run.load_optimizer_state(whole)
            for index in (index for index, leaving in enumerate(self._leaving) if leaving):
                self._handover_done[index] = True
                self._send_lead(index)

    def _request(self, index: int) -> None:
        self._num_requests += 1
        self._pending[index] = self._num_requests
        request = {"request": self._num_requests, "optimizers": self._optimizers}
        self.connections[index].send(
            json_message(Kind.COLLECT, request | {"run": self._lead["run"]})
        )

    def _check_silence(self) -> None:
        for index, connection in enumerate(self.connections):
            # It may be starting again.
            silent = monotonic() - self._last_heard[index] > self._rendezvous_seconds
            if index not in self._collected and silent:
                raise UserError(
                    f"the server {connection.server} has not answered for "
                    f"{self._rendezvous_seconds:g} seconds, so step {self.run.step} is neither "
                    "evaluated nor saved"
                )

    def end(self, why: str, *, failed: bool = False) -> None:
        """Tell the other servers that the run has ended; they tell the workers."""
        content = {"run": self._lead["run"], "why": why, "failed": failed}
        for connection in self.connections:
            connection.send(json_message(Kind.END, content))

    def close(self) -> None:
        """Close the connections."""
        for connection in self.connections:
            connection.close()
