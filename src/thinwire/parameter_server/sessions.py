"""A server's side of the conversation: who the workers are, and what each is answered.

Everything here follows from the messages and from the time that the caller tells, so that a test
decides both. A worker is known by its incarnation from HELLO to GOODBYE, or until it has been
silent for too long; what comes from an unknown one is answered with AGAIN, and changes nothing.
Whoever has a worker's name takes its session over, place included: so a replacement goes on where
the dead one was, and the dead one, should it wake up, is unknown.

While the run evaluates or saves, pulls and pushes are kept back, and those who wait are told so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from thinwire.parameter_server.protocol import (
    PROTOCOL,
    Kind,
    Pull,
    Push,
    WireAccount,
    finite,
    incarnation_of,
    json_of,
    read_message,
    say,
    say_json,
    whole,
)
from thinwire.parameter_server.shard import Held, Shard, Unusable
from thinwire.parameter_server.staleness import Staleness
from thinwire.transport.messages import Listener
from thinwire.wire.frames import Frame

# A worker that waits says ALIVE so often, and is told WAIT so often.
LIFE_SECONDS = 1.0
# Who waits asks once a second: whoever has not asked for so long has heard the answer, or has gone.
NEAR_SECONDS = 3 * LIFE_SECONDS
# A worker is believed to compute for so many times its slowest step; else it has died, or is away.
SLOWER = 2.0
# So many pushes in a row that cannot be applied are no accident.
MOST_REFUSED = 3
# More workers than this may not join; each costs memory for what it holds.
MOST_SESSIONS = 1024
# A worker has a push and the pulls of two steps under way; more are no worker's.
MOST_KEPT_BACK = 16
# Names, versions and fingerprints of workers stand in sentences.
LONGEST_NAME = 300
# Pushes that are missing in between are waited for so long: until so many more have come.
PUSHES_REMEMBERED = 100


class Numbers:
    """Numbers from 1 on, which may come out of order, and each of which counts once."""

    def __init__(self) -> None:
        self._highest = 0
        self._missing: set[int] = set()

    def first(self, number: int) -> bool:
        """Whether this number comes for the first time."""
        if number in self._missing:
            self._missing.remove(number)
            return True
        if number <= self._highest:
            return False
        oldest = number - PUSHES_REMEMBERED
        self._missing.update(range(max(self._highest + 1, oldest), number))
        self._missing = {missing for missing in self._missing if missing >= oldest}
        self._highest = number
        return True


@dataclass
class Session:
    """A worker that is known here.

    Attributes:
        incarnation: its number.
        name: what to call it in a sentence.
        place: which part of the text it reads.
        client: its return address.
        heard: when it last said anything, on the server's clock.
        held: what it holds of this server's rows.
        pushes: which of its pushes have come.
        newest_step: its newest pull that it was given all for that a step needs.
        newest_push: the newest pull that a push of its has used.
        step_began: when it was given all for `newest_step`, on the server's clock.
        slowest_seconds: the longest that a step of its has taken so far.
        pushed: whether a push of its has come.
        refused: how many of its last pushes, one after the other, could not be applied.
        waiting: its pull that is kept back.
        wire: its own account of the wire.
    """

    incarnation: int
    name: str
    client: bytes
    heard: float
    place: int = 0
    held: Held = field(default_factory=Held)
    pushes: Numbers = field(default_factory=Numbers)
    newest_step: int = 0
    newest_push: int = 0
    step_began: float = 0.0
    slowest_seconds: float = 0.0
    pushed: bool = False
    refused: int = 0
    waiting: Pull | None = None
    wire: WireAccount = field(default_factory=WireAccount)

    def computes(self, now: float) -> bool:
        """Whether it can compute a step, has not pushed it yet, and has not taken too long for it.

        A worker that computes is silent. One that has died is so too, until it is dropped; but
        meanwhile nobody waits for it.
        """
        most = max(NEAR_SECONDS, SLOWER * self.slowest_seconds)
        return self.newest_step > self.newest_push and now - self.step_began <= most

    def begins(self, pull: int, now: float) -> None:
        """It is given all that a step needs."""
        self.newest_step, self.step_began = pull, now

    def ends(self, pull: int, now: float) -> None:
        """The push of a step has come."""
        self.pushed = True
        if pull == self.newest_step > self.newest_push:
            self.slowest_seconds = max(self.slowest_seconds, now - self.step_began)
        self.newest_push = max(self.newest_push, pull)


class Controller(ABC):
    """Who steers the run that a server serves. `expect`, `refused` and `count` may raise."""

    @abstractmethod
    def welcome(self, session: Session, before: Session | None) -> dict[str, Any] | None:
        """Give a new worker its place, and say what it has to know; None: let it ask again.

        Args:
            session: of the worker.
            before: the session that it takes over.
        """

    @abstractmethod
    def left(self, session: Session, why: str) -> None:
        """This worker has left."""

    @abstractmethod
    def expect(self, session: Session, push: Push) -> None:
        """A push is about to be applied.

        Raises:
            ValueError: it is none that a worker sends; it is ignored. `Unusable`: it is refused.
        """

    @abstractmethod
    def refused(self, session: Session, why: Unusable) -> None:
        """A push could not be applied."""

    @abstractmethod
    def count(self, session: Session, push: Push, staleness: Staleness | None) -> None:
        """It has been applied, or dropped because it came too late."""


class Server:
    """Answers workers.

    Args:
        listener: where they are.
        shard: what they pull from and push to.
        controller: steers the run.
        data: the data folder's fingerprint.
        version: of thinwire.
        timeout_seconds: the longest silence of a worker.
        warn: says a sentence to people.
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
        self._kept_back: list[tuple[int, Pull | Push]] = []
        self._holding = False
        self._stopped: Tensor | None = None
        self._warned = False
        self._departed: list[WireAccount] = []
        # A clock that runs while this server does: being stopped makes nobody else silent.
        self._lived = 0.0
        self._ticked: float | None = None
        self._wait_due = 0.0

    # What comes in

    def handle(self, client: bytes, data: Tensor) -> None:
        """Answer a message; one that cannot be read is left alone."""
        try:
            kind, frame = read_message(data)
            message = self._read(kind, frame)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            self._ignore(error)
            return
        if kind in (Kind.LEAD, Kind.TAKE, Kind.GIVE, Kind.END):
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
                    **{name: _short(hello[name]) for name in ("thinwire", "data", "name")},
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
            case Kind.LEAD | Kind.TAKE | Kind.GIVE | Kind.END:
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
            self.listener.send(client, say(Kind.REFUSED, text=refusal))
            return
        if len(self.sessions) >= MOST_SESSIONS:
            full = f"the server has {MOST_SESSIONS} workers, and takes no more"
            self.listener.send(client, say(Kind.REFUSED, text=full))
            return
        session = Session(hello["incarnation"], hello["name"], client, self._lived)
        before = next((s for s in self.sessions.values() if s.name == session.name), None)
        if before is not None and before.incarnation == session.incarnation:
            session, before.client = before, client  # it has asked twice
        welcome = self.controller.welcome(session, before)
        if welcome is None:
            return
        if before is not None and before is not session:
            self._departed.append(self.sessions.pop(before.incarnation).wire)
        self.sessions[session.incarnation] = session
        told = welcome | {"incarnation": session.incarnation}
        self.listener.send(client, say_json(Kind.WELCOME, told))

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
            session.client, session.heard = client, self._lived
        if session is not None and isinstance(message, WireAccount):
            session.wire = message
            self._drop(session, "has said goodbye")
        elif self._stopped is not None:
            if kind is not Kind.GOODBYE:
                self.listener.send(client, self._stopped)
        elif session is None:
            if kind is not Kind.GOODBYE:
                self.listener.send(client, say(Kind.AGAIN, incarnation))
        else:
            if isinstance(message, Push):
                if not session.pushes.first(message.number):
                    return
                session.ends(message.pull, self._lived)
            if isinstance(message, Pull):
                session.waiting = message
            if isinstance(message, Pull | Push):
                if self._holding:
                    self._keep_back(incarnation, message)
                else:
                    self._serve(session, message)

    def _keep_back(self, incarnation: int, message: Pull | Push) -> None:
        if sum(kept == incarnation for kept, _ in self._kept_back) < MOST_KEPT_BACK:
            self._kept_back.append((incarnation, message))

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
                    session.begins(message.number, self._lived)
            return
        try:
            self.controller.expect(session, message)
            staleness = self.shard.push(session.held, message)
        except Unusable as error:
            session.refused += 1
            self.controller.refused(session, error)
            self._too_old(session, message)
            return
        except ValueError as error:
            self._ignore(error)
            return
        session.refused = 0
        session.wire = message.report.wire
        self.controller.count(session, message, staleness)
        if staleness is None:
            self._too_old(session, message)

    def _too_old(self, session: Session, push: Push) -> None:
        self.listener.send(session.client, say(Kind.TOO_OLD, session.incarnation, push.number))

    # What time brings

    def tick(self, now: float) -> None:
        """Drop those who have been silent for too long, and tell those who wait to wait on."""
        if self._ticked is not None:
            self._lived += min(now - self._ticked, LIFE_SECONDS)
        self._ticked = now
        for session in list(self.sessions.values()):
            if self._lived - session.heard > self._timeout_seconds:
                self._drop(session, f"has been silent for {self._timeout_seconds:g} seconds")
        if self._holding and self._lived >= self._wait_due:
            self._wait_due = self._lived + LIFE_SECONDS
            for session in self.sessions.values():
                if session.waiting is not None:
                    self.listener.send(session.client, say(Kind.WAIT, session.incarnation))

    def _drop(self, session: Session, why: str) -> None:
        del self.sessions[session.incarnation]
        self._departed.append(session.wire)
        self.controller.left(session, why)

    # What the run does

    def hold(self) -> None:
        """Keep pulls and pushes back from now on: the parameters stand still."""
        self._holding, self._wait_due = True, self._lived + LIFE_SECONDS

    def release(self) -> None:
        """Go on, with what was kept back first."""
        self._holding = False
        kept, self._kept_back = self._kept_back, []
        for incarnation, message in kept:
            session = self.sessions.get(incarnation)
            if session is not None and self._stopped is None:
                self._serve(session, message)

    @property
    def all_wait(self) -> bool:
        """Whether no worker computes."""
        return self._stopped is not None or not any(
            session.computes(self._lived) for session in self.sessions.values()
        )

    @property
    def all_refused(self) -> bool:
        """Whether no worker's pushes can be applied any more: the last few of each were refused."""
        return all(s.refused >= MOST_REFUSED for s in self.sessions.values() if s.pushed)

    def forget(self) -> None:
        """Know no worker any more: what they hold is not what is here."""
        self._departed += [session.wire for session in self.sessions.values()]
        self.sessions.clear()

    @property
    def stopped(self) -> bool:
        """Whether the run has ended."""
        return self._stopped is not None

    def hears_someone(self) -> bool:
        """Whether a worker that has not left was heard a moment ago."""
        return any(self._lived - s.heard < NEAR_SECONDS for s in self.sessions.values())

    def stop(self, why: str, *, failed: bool = False) -> None:
        """The run has ended: whoever says anything from now on is told why."""
        self._stopped = say(Kind.STOP, failed, text=why)
        self._kept_back.clear()
        for session in self.sessions.values():
            self.listener.send(session.client, self._stopped)

    def wire(self) -> WireAccount:
        """The workers' accounts of the wire, added up; also of those who have left."""
        accounts = [*self._departed, *(session.wire for session in self.sessions.values())]
        total = WireAccount(*map(sum, zip(*accounts, strict=True))) if accounts else WireAccount()
        self._departed = [WireAccount(*map(sum, zip(WireAccount(), *self._departed, strict=True)))]
        return total


def _short(text: Any) -> str:
    if not isinstance(text, str) or len(text) > LONGEST_NAME:
        raise ValueError(f"a name is a text of {LONGEST_NAME} characters at most")
    return text
