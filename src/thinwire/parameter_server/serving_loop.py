"""What all servers of an asynchronous run have in common: the loop, and the goodbyes."""

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
    """A server of a run; each turn of its loop answers one message.

    Attributes:
        config: all settings.
        listener: receives from workers and sends to them.
        server: answers the workers.
    """

    config: RunConfig
    listener: Listener
    server: Server

    def turn(self, timeout_seconds: float = POLL_SECONDS) -> bool:
        """Answer one message, if one arrives in time; return whether one did."""
        found = self.listener.receive(timeout_seconds)
        self.server.tick(monotonic())
        if found is not None:
            self.server.handle(*found)
        return found is not None

    def await_goodbyes(self) -> None:
        """Wait a while for the workers' goodbyes, after they were told that the run has ended."""
        deadline = monotonic() + PARTING_SECONDS
        while self.server.sessions and monotonic() < deadline:
            self.turn(SHORT_POLL_SECONDS)

    def linger(self) -> None:
        """Keep answering workers that do not know yet that the run has ended.

        On a slow link, STOP arrives after what was sent before it. Closing the listener would
        discard it, and those workers would wait in vain.
        """
        deadline = monotonic() + self.config.exchange.timeout_seconds
        while self.server.hears_anyone() and monotonic() < deadline:
            self.turn(SHORT_POLL_SECONDS)
