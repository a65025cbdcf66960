"""What all servers of an asynchronous run have in common: they answer, and see workers off."""

from __future__ import annotations

from time import monotonic

from thinwire.config import RunConfig
from thinwire.parameter_server.controller import Controller
from thinwire.parameter_server.server import Server
from thinwire.transport.messages import Listener

# How long a server waits for a message before it looks at what else there is to do.
POLL_SECONDS = 0.1
# The same where it waits for something else to be done.
SHORT_POLL_SECONDS = 0.02
# How long it waits for goodbyes when the run has ended.
PARTING_SECONDS = 3.0


class ServingLoop(Controller):
    """A server of a run, which answers a message a turn.

    Attributes:
        config: all settings.
        listener: where the workers are.
        server: its side of the conversation.
    """

    config: RunConfig
    listener: Listener
    server: Server

    def turn(self, timeout_seconds: float = POLL_SECONDS) -> bool:
        """Answer one message, if one comes; whether one came."""
        found = self.listener.receive(timeout_seconds)
        self.server.tick(monotonic())
        if found is not None:
            self.server.handle(*found)
        return found is not None

    def await_goodbyes(self) -> None:
        """Give the workers the time to hear of the end, and to say goodbye."""
        deadline = monotonic() + PARTING_SECONDS
        while self.server.sessions and monotonic() < deadline:
            self.turn(SHORT_POLL_SECONDS)

    def linger(self) -> None:
        """Stay for those who still ask.

        On a slow link the end follows what was sent before it. Closing the listener would discard
        it, and the workers would wait in vain.
        """
        deadline = monotonic() + self.config.exchange.timeout_seconds
        while self.server.hears_anyone() and monotonic() < deadline:
            self.turn(SHORT_POLL_SECONDS)
