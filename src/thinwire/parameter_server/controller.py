"""The interface between a server and what controls its run: a leader or a follower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from thinwire.parameter_server.protocol import Push
from thinwire.parameter_server.session import Session
from thinwire.parameter_server.shard import Unusable
from thinwire.parameter_server.staleness import Staleness


class Controller(ABC):
    """Controls the run of a server.

    `check_push`, `push_refused` and `push_done` may raise.
    """

    @abstractmethod
    def welcome(self, session: Session, before: Session | None) -> dict[str, Any] | None:
        """Assign a slot to a new worker; return what it must know, or None to let it ask again.

        Args:
            session: the new worker's session.
            before: the session that it takes over, if any.
        """

    @abstractmethod
    def on_leave(self, session: Session, why: str) -> None:
        """A worker has left."""

    @abstractmethod
    def check_push(self, session: Session, push: Push) -> None:
        """Check a push before it is applied.

        Raises:
            Unusable: the push is refused.
            ValueError: no worker sends such a push; it is ignored.
        """

    @abstractmethod
    def push_refused(self, session: Session, why: Unusable) -> None:
        """A push could not be applied."""

    @abstractmethod
    def push_done(self, session: Session, push: Push, staleness: Staleness | None) -> None:
        """A push was applied, or (`staleness` is None) dropped because it came too late."""
