"""A server's side of the conversation: which workers have joined, and the answers to them.

Everything here depends only on the messages and on the time that the caller passes in, so that
tests control both. A server knows a worker by its incarnation, from HELLO to GOODBYE or until the
worker has been silent for too long. A message from an unknown incarnation is answered with UNKNOWN,
and changes nothing. A worker that joins under the name of another takes over its session and its
slot: a replacement continues where the dead worker was, and the dead worker, if it continues after
all, is unknown.

While the run evaluates or saves, pulls and pushes are deferred, and workers that wait receive WAIT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from thinwire.parameter_server.controller import Controller
from thinwire.parameter_server.fields import finite, whole
from thinwire.parameter_server.protocol import (
    PROTOCOL,
    Kind,
    Pull,
    Push,
    WireAccount,
    incarnation_of,
    json_message,
    json_of,
    read_message,
    small_message,
)
from thinwire.parameter_server.session import ALIVE_SECONDS, SILENCE_SECONDS, Session
from thinwire.parameter_server.shard import Shard, Unusable
from thinwire.transport.messages import Listener
from thinwire.wire.frames import Frame

# After this many pushes in a row that cannot be applied, a worker is useless.
MOST_REFUSED = 3
# More workers than this may not join; each costs memory for what it holds.
MOST_SESSIONS = 1024
# A worker has at most one push and the pulls of two steps under way.
MOST_DEFERRED = 16
# The longest name, version or fingerprint that a worker may have: they are printed.
LONGEST_NAME = 300


class Server:
    """Answers workers.

    Args:
        listener: receives from workers and sends to them.
        shard: the rows that workers pull and push.
        controller: steers the run.
        data: the data folder's fingerprint.
        version: of thinwire.
        timeout_seconds: the longest silence of a worker.
        warn: prints a sentence for people.
    """

    def __init__(
        self,
        listener: Listener,
        shard: Shard,
        controller: Controller,
        *,
        data: str,
        version: str,
        timeout_seconds: float,
        warn: Callable[[str], None],
    ) -> None:
        self.listener, self.shard, self.controller = listener, shard, controller
        self.sessions: dict[int, Session] = {}
        self.on_lead: Callable[[bytes, Kind, Frame], None] | None = None
        """What to do with messages of the first server."""
        self._data, self._version = data, version
        self._timeout_seconds, self._warn = timeout_seconds, warn
        self._deferred: list[tuple[int, Pull | Push]] = []
        self._holding = False
        self._stopped: Tensor | None = None
        self._warned = False
        self._departed: list[WireAccount] = []
        # Seconds in which this server was running: while it is suspended, nobody counts as silent.
        self._uptime = 0.0
        self._last_tick: float | None = None
        self._wait_due = 0.0

    # Messages

    def handle(self, client: bytes, data: Tensor) -> None:
        """Answer a message; one that cannot be read is ignored."""
        try:
            kind, frame = read_message(data)
            message = self._read(kind, frame)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            self._ignore(error)
            return
        if kind in (Kind.LEAD, Kind.LOAD, Kind.COLLECT, Kind.END):
            if self.on_lead is not None:
                self.on_lead(client, kind, frame)
        elif isinstance(message, dict):
            self._hello(client, message)
        else:
            self._known(client, kind, incarnation_of(frame), message)

    def _read(self, kind: Kind, frame: Frame) -> Pull | Push | WireAccount | dict[str, Any] | None:
        match kind:
            case Kind.HELLO:
                hello = json_of(frame)
                return {
                    "protocol": whole(hello["protocol"]),
                    "incarnation": whole(hello["incarnation"], least=1),
                    **{name: _checked_name(hello[name]) for name in ("thinwire", "data", "name")},
                }
            case Kind.PULL:
                return Pull.read(frame, self.shard.num_rows)
            case Kind.PUSH:
                return Push.read(frame, self.shard.num_rows)
            case Kind.ALIVE:
                incarnation_of(frame)
            case Kind.GOODBYE:
                incarnation_of(frame)
                return WireAccount(*map(finite, frame.numbers[1:]))
            case Kind.LEAD | Kind.LOAD | Kind.COLLECT | Kind.END:
                pass
            case _:
                raise ValueError(f"{kind.name} is what servers say")
        return None

    def _ignore(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"A message that no worker of this run sends was ignored ({error}).")

    def _hello(self, client: bytes, hello: Mapping[str, Any]) -> None:
        if self._stopped is not None:
            self.listener.send(client, self._stopped)
            return
        refusal = self._refusal(hello)
        if refusal is not None:
            self.listener.send(client, small_message(Kind.REFUSED, text=refusal))
            return
        if len(self.sessions) >= MOST_SESSIONS:
            full = f"the server has {MOST_SESSIONS} workers, and takes no more"
            self.listener.send(client, small_message(Kind.REFUSED, text=full))
            return
        session = Session(hello["incarnation"], hello["name"], client, self._uptime)
        before = next((s for s in self.sessions.values() if s.name == session.name), None)
        if before is not None and before.incarnation == session.incarnation:
            session, before.client = before, client  # it has asked twice
        welcome = self.controller.welcome(session, before)
        if welcome is None:
            return
        if before is not None and before is not session:
            self._departed.append(self.sessions.pop(before.incarnation).wire)
        self.sessions[session.incarnation] = session
        content = welcome | {"incarnation": session.incarnation}
        self.listener.send(client, json_message(Kind.WELCOME, content))

    def _refusal(self, hello: Mapping[str, Any]) -> str | None:
        name, data, version = hello["name"], hello["data"], hello["thinwire"]
        if (hello["protocol"], version) != (PROTOCOL, self._version):
            return (
                f"the server runs thinwire {self._version} (protocol {PROTOCOL}) and {name} runs "
                f"{version} (protocol {hello['protocol']}): install the same version on both"
            )
        if data != self._data:
            return (
                f"the server trains on a corpus with fingerprint {self._data[:12]}, but that of "
                f"{name} has {data[:12]}: give the worker a copy of the server's data folder"
            )
        return None

    def _known(
        self,
        client: bytes,
        kind: Kind,
        incarnation: int,
        message: Pull | Push | WireAccount | None,
    ) -> None:
        session = self.sessions.get(incarnation)
        if session is not None:
            session.client, session.heard = client, self._uptime
        if session is not None and isinstance(message, WireAccount):
            session.wire = message
            self._drop(session, "has said goodbye")
        elif self._stopped is not None:
            if kind is not Kind.GOODBYE:
                self.listener.send(client, self._stopped)
        elif session is None:
            if kind is not Kind.GOODBYE:
                self.listener.send(client, small_message(Kind.UNKNOWN, incarnation))
        else:
            if isinstance(message, Push):
                if not session.pushes.first(message.number):
                    return
                session.step_ends(message.pull, self._uptime)
            if isinstance(message, Pull):
                session.waiting = message
            if isinstance(message, Pull | Push):
                if self._holding:
                    self._defer(incarnation, message)
                else:
                    self._serve(session, message)

    def _defer(self, incarnation: int, message: Pull | Push) -> None:
        if sum(kept == incarnation for kept, _ in self._deferred) < MOST_DEFERRED:
            self._deferred.append((incarnation, message))

    def _serve(self, session: Session, message: Pull | Push) -> None:
        if isinstance(message, Pull):
            session.waiting = None
            try:
                rows = self.shard.pull(session.held, message)
            except ValueError as error:
                self._ignore(error)
                return
            if rows is not None:
                self.listener.send(session.client, rows.pack())
                if self.shard.begins_step(message):
                    session.step_begins(message.number, self._uptime)
            return
        try:
            self.controller.check_push(session, message)
            staleness = self.shard.push(session.held, message)
        except Unusable as error:
            session.refused_pushes += 1
            self.controller.push_refused(session, error)
            self._too_old(session, message)
            return
        except ValueError as error:
            self._ignore(error)
            return
        session.refused_pushes = 0
        session.wire = message.report.wire
        self.controller.push_done(session, message, staleness)
        if staleness is None:
            self._too_old(session, message)

    def _too_old(self, session: Session, push: Push) -> None:
        self.listener.send(
            session.client, small_message(Kind.TOO_OLD, session.incarnation, push.number)
        )

    # Time

    def tick(self, now: float) -> None:
        """Drop workers that have been silent for too long, and send WAIT to those that wait."""
        if self._last_tick is not None:
            self._uptime += min(now - self._last_tick, ALIVE_SECONDS)
        self._last_tick = now
        for session in list(self.sessions.values()):
            if self._uptime - session.heard > self._timeout_seconds:
                self._drop(session, f"has been silent for {self._timeout_seconds:g} seconds")
        if self._holding and self._uptime >= self._wait_due:
            self._wait_due = self._uptime + ALIVE_SECONDS
            for session in self.sessions.values():
                if session.waiting is not None:
                    self.listener.send(
                        session.client, small_message(Kind.WAIT, session.incarnation)
                    )

    def _drop(self, session: Session, why: str) -> None:
        del self.sessions[session.incarnation]
        self._departed.append(session.wire)
        self.controller.on_leave(session, why)

    # Calls of the controller

    def hold(self) -> None:
        """Defer pulls and pushes from now on: the parameters do not change."""
        self._holding, self._wait_due = True, self._uptime + ALIVE_SECONDS

    def release(self) -> None:
        """Continue, beginning with the deferred messages."""
        self._holding = False
        kept, self._deferred = self._deferred, []
        for incarnation, message in kept:
            session = self.sessions.get(incarnation)
            if session is not None and self._stopped is None:
                self._serve(session, message)

    @property
    def all_wait(self) -> bool:
        """Whether no worker computes."""
        return self._stopped is not None or not any(
            session.computes(self._uptime) for session in self.sessions.values()
        )

    @property
    def all_refused(self) -> bool:
        """Whether the last pushes of every worker were refused."""
        return all(s.refused_pushes >= MOST_REFUSED for s in self.sessions.values() if s.pushed)

    def forget(self) -> None:
        """Forget all workers: the rows that they have are not those of this server."""
        self._departed += [session.wire for session in self.sessions.values()]
        self.sessions.clear()

    @property
    def stopped(self) -> bool:
        """Whether the run has ended."""
        return self._stopped is not None

    def hears_anyone(self) -> bool:
        """Whether a worker that has not left has sent a message a moment ago."""
        return any(self._uptime - s.heard < SILENCE_SECONDS for s in self.sessions.values())

    def stop(self, why: str, *, failed: bool = False) -> None:
        """End the run: every worker is told why, now and whenever it sends a message later."""
        self._stopped = small_message(Kind.STOP, failed, text=why)
        self._deferred.clear()
        for session in self.sessions.values():
            self.listener.send(session.client, self._stopped)

    def wire(self) -> WireAccount:
        """The sum of the workers' accounts of the wire, including workers that have left."""
        accounts = [*self._departed, *(session.wire for session in self.sessions.values())]
        total = WireAccount(*map(sum, zip(*accounts, strict=True))) if accounts else WireAccount()
        self._departed = [WireAccount(*map(sum, zip(WireAccount(), *self._departed, strict=True)))]
        return total


def _checked_name(text: Any) -> str:
    if not isinstance(text, str) or len(text) > LONGEST_NAME:
        raise ValueError(f"a name is a text of {LONGEST_NAME} characters at most")
    return text
