"""Several servers of one run: the first one leads, and the others follow.

Each holds every M-th row of every parameter and answers the workers' pulls and pushes of those. The
first one also keeps the record. Once a second it tells each of the others which run they serve
(LEAD), and learns whether that one is ready (LED); one that has been started, or started again, is
not, and is given its rows as the first server has them (TAKE): as of the last evaluation or save.
Before evaluating and saving the first server asks for all rows (GIVE, SLICES). When the run ends it
says so (END).

A follower gives rows only when it is ready, and for the run that asks. Messages to one server
arrive in order, and LEAD names the request that is under way, which LED repeats; so a LED that
repeats it without SLICES before it shows that the request or its answer was lost, or that the
follower had nothing to give. It is asked again, once it has been given its rows.

A follower that was asked to stop says so in LED. The first server then collects at once, and LEAD
tells the follower that its rows have arrived.

Learning rates follow the workers' pushes, which carry the factor that the first server gave them.
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
    json_of,
    read_message,
    say_json,
    text_of,
)
from thinwire.parameter_server.serving_loop import POLL_SECONDS
from thinwire.parameter_server.sessions import LIFE_SECONDS
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
        connections: to them, in the order of their shards, from shard 1 on.
        run: the run, whose model takes in what they hold.
        shard: the first server's own rows.
        run_id: the run's name.
        settings: all settings of the run, as JSON has them.
        warn: says a sentence to people.
        meeting_seconds: the least time that the others have to answer, for they may have been
            started again, and starting takes longer than answering.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        run: Run,
        shard: Shard,
        run_id: str,
        settings: Mapping[str, Any],
        warn: Callable[[str], None],
        meeting_seconds: float = RENDEZVOUS_SECONDS,
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
        self._meeting_seconds = max(run.config.exchange.timeout_seconds, meeting_seconds)
        self._ready = [False] * len(connections)
        self._was_ready = [False] * len(connections)
        self._heard = [monotonic()] * len(connections)
        self._lead_due = 0.0
        self._num_requests = 0
        # For each follower the request that is under way, and what it has answered.
        self._asked: list[int | None] = [None] * len(connections)
        self._slices: dict[int, dict[str, Tensor]] = {}
        self._optimizers = False
        self._leaving = [False] * len(connections)
        self._seen_off = [False] * len(connections)

    def gather_round(self, stopping: Callable[[], bool]) -> None:
        """Wait until all are ready; first load this server's own rows.

        They may still be starting, which takes longer than to answer.

        Raises:
            UserError: one refuses, or does not answer in time; or there is nothing to serve, as the
                model is not finite.
        """
        parameters, optimizers = self._own(0)
        try:
            load_shard(self.shard, parameters, optimizers)
        except ValueError as error:
            raise UserError(f"this model cannot be served: {error}") from None
        self._heard = [monotonic()] * len(self.connections)
        while not all(self._ready) and not stopping():
            self.look_after(POLL_SECONDS)
            self._complain()

    def _complain(self) -> None:
        for connection, ready, heard in zip(
            self.connections, self._ready, self._heard, strict=True
        ):
            if not ready and monotonic() - heard > self._meeting_seconds:
                raise UserError(
                    f"the server {connection.server} has not answered for "
                    f"{self._meeting_seconds:g} seconds: is it running, and has it the same key?"
                )

    def look_after(self, timeout_seconds: float = 0.0) -> None:
        """Once a second, learn how they are; give their rows to those who have none.

        Raises:
            UserError: one refuses.
        """
        if monotonic() >= self._lead_due:
            self._lead_due = monotonic() + LIFE_SECONDS
            for index in range(len(self.connections)):
                self._send_lead(index)
        for index, connection in enumerate(self.connections):
            while (message := connection.receive(timeout_seconds)) is not None:
                timeout_seconds = 0.0
                with suppress(ValueError, KeyError, TypeError):
                    self._take(index, *read_message(message))

    def _send_lead(self, index: int) -> None:
        lead = self._lead | {
            "shard": index + 1,
            "request": self._asked[index],
            "seen_off": self._seen_off[index],
        }
        self.connections[index].send(say_json(Kind.LEAD, lead))

    def _take(self, index: int, kind: Kind, frame: Frame) -> None:
        self._heard[index] = monotonic()
        if kind is Kind.REFUSED:
            raise UserError(text_of(frame))
        if kind is Kind.SLICES:
            content = json_of(frame)
            if content["request"] == self._asked[index]:
                self._slices[index] = restored(content["tensors"], frame.parts[1:])
        if kind is Kind.LED:
            self._learn(index, json_of(frame))

    def _learn(self, index: int, led: Mapping[str, Any]) -> None:
        """How a follower is."""
        self._leaving[index] = bool(led["leaving"])
        self._seen_off[index] &= self._leaving[index]
        self._ready[index] = bool(led["ready"])
        if not self._ready[index]:
            if self._was_ready[index]:
                self._was_ready[index] = False
                self._warn(
                    f"the server {self.connections[index].server} has been started again; its "
                    "rows are those of the last evaluation or save"
                )
            parameters, optimizers = self._own(index + 1)
            held = {f"{MODEL}{n}": t for n, t in parameters.items()} | optimizers
            content = {"run": self._lead["run"], "tensors": described(held)}
            self.connections[index].send(say_json(Kind.TAKE, content, contents(held)))
        else:
            self._was_ready[index] = True
        lost = led["request"] is not None and led["request"] == self._asked[index]
        if lost and index not in self._slices:
            self._ask(index)

    @property
    def one_leaves(self) -> bool:
        """Whether one was asked to stop whose rows have not been collected since."""
        return any(
            leaving and not seen_off
            for leaving, seen_off in zip(self._leaving, self._seen_off, strict=True)
        )

    def _own(self, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        run, M = self.run, 1 + len(self.connections)
        parameters = {n: p.detach() for n, p in (*run.tables.items(), *run.blocks.items())}
        return cut(parameters, index, M), cut(run.optimizer_state(), index, M)

    def collect(self, *, optimizers: bool) -> None:
        """Put the rows of all servers into the run's model and, if asked for, into its optimisers.

        A follower that is started again meanwhile is given its rows first, and then asked.

        Raises:
            UserError: one refuses, or is silent for too long; nothing was changed.
        """
        self._optimizers = optimizers
        self._slices.clear()
        for index in range(len(self.connections)):
            self._heard[index] = monotonic()
            self._ask(index)
        try:
            while len(self._slices) < len(self.connections):
                self.look_after(POLL_SECONDS)
                self._complain_of_silence()
        except UserError:
            self._leaving = [False] * len(self.connections)  # until one says so again
            raise
        finally:
            self._asked = [None] * len(self.connections)
        own = {f"{MODEL}{n}": t for n, t in parameters_of(self.shard).items()}
        own |= optimizers_of(self.shard) if optimizers else {}
        whole = merged([own, *(self._slices[index] for index in range(len(self.connections)))])
        self._slices.clear()
        check_finite(
            {n.removeprefix(MODEL): t for n, t in whole.items() if n.startswith(MODEL)},
            self.run.step,
        )
        with torch.no_grad():
            for name, parameter in {**self.run.tables, **self.run.blocks}.items():
                parameter.copy_(whole.pop(f"{MODEL}{name}"))
        if optimizers:
            self.run.load_optimizer_state(whole)
            for index in (index for index, leaving in enumerate(self._leaving) if leaving):
                self._seen_off[index] = True
                self._send_lead(index)

    def _ask(self, index: int) -> None:
        self._num_requests += 1
        self._asked[index] = self._num_requests
        request = {"request": self._num_requests, "optimizers": self._optimizers}
        self.connections[index].send(say_json(Kind.GIVE, request | {"run": self._lead["run"]}))

    def _complain_of_silence(self) -> None:
        for index, connection in enumerate(self.connections):
            # It may be starting again.
            silent = monotonic() - self._heard[index] > self._meeting_seconds
            if index not in self._slices and silent:
                raise UserError(
                    f"the server {connection.server} has not answered for "
                    f"{self._meeting_seconds:g} seconds, so step {self.run.step} is neither "
                    "evaluated nor saved"
                )

    def end(self, why: str, *, failed: bool = False) -> None:
        """Tell them that the run has ended, for their workers to be told."""
        told = {"run": self._lead["run"], "why": why, "failed": failed}
        for connection in self.connections:
            connection.send(say_json(Kind.END, told))

    def close(self) -> None:
        """Hang up."""
        for connection in self.connections:
            connection.close()
