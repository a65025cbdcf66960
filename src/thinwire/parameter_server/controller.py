"""What a server asks of whoever steers the run: a leader or a follower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from thinwire.parameter_server.protocol import Push
from thinwire.parameter_server.session import Session
from thinwire.parameter_server.shard import Unusable
from thinwire.parameter_server.staleness import Staleness


class Controller(ABC):
    """Steers the run that a server serves.

    `check_push`, `push_refused` and `push_done` may raise.
    """

    @abstractmethod
    def welcome(self, session: Session, before: Session | None) -> dict[str, Any] | None:
        """Give a new worker its slot, and say what it has to know; None: let it ask again.

        Args:
            session: of the worker.
            before: the session that it takes over.
        """

    @abstractmethod
    def on_leave(self, session: Session, why: str) -> None:
        """This worker has left."""

    @abstractmethod
    def check_push(self, session: Session, push: Push) -> None:
        """A push is about to be applied.

        Raises:
            ValueError: it is none that a worker sends; it is ignored. `Unusable`: it is refused.
        """

    @abstractmethod
    def push_refused(self, session: Session, why: Unusable) -> None:
        """A push could not be applied."""

    @abstractmethod
    def push_done(self, session: Session, push: Push, staleness: Staleness | None) -> None:
        """It has been applied, or dropped because it came too late."""
