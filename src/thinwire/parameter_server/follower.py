"""A server that is not the first of its run: it has its rows, and the first server controls it.

`followers.py` has the other side of the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.parameter_server.protocol import (
    PROTOCOL,
    Kind,
    Position,
    Push,
    json_message,
    json_of,
    small_message,
)
from thinwire.parameter_server.server import Server
from thinwire.parameter_server.serving_loop import ServingLoop
from thinwire.parameter_server.session import Session
from thinwire.parameter_server.shard import Unusable
from thinwire.parameter_server.sharding import (
    MODEL,
    contents,
    described,
    load_shard,
    optimizers_of,
    parameters_of,
    restored,
    sliced_shard,
)
from thinwire.parameter_server.staleness import Staleness
from thinwire.runs.device import set_up_device
from thinwire.runs.signals import stop_on_signals
from thinwire.transport.messages import Listener
from thinwire.wire.frames import Frame

# How long one that was asked to stop waits for the first server to collect its rows: schedulers
# kill after 30 seconds.
HANDOVER_SECONDS = 20.0
# What servers of one run must have in common.
SAME = ("model", "loss", "data", "optim", "exchange")


def serve_shard(
    data: Path,
    config: RunConfig,
    index: int,
    count: int,
    *,
    listener: Callable[[int], Listener],
    ready: Callable[[], None] = lambda: None,
    warn: Callable[[str], None],
    threads: int | None = None,
) -> None:
    """Serve shard `index` (1 or more) of `count`, until the first server says that the run ended.

    Args:
        data: a copy of the first server's data folder.
        config: the first server's settings.
        index: the shard, which decides on the rows.
        count: the number of servers.
        listener: opens the server's listener; its argument is the size limit of messages in bytes.
        ready: called when workers and the first server may connect.
        warn: prints a sentence for people.
        threads: compute threads of this server; None: `run.threads` or, if that is 0, all cores.

    Raises:
        UserError: the user can correct the cause.
    """
    corpus = Corpus.open(data)
    config = replace(config, exchange=replace(config.exchange, kind="async"))
    device = set_up_device(config, threads)
    follower = Follower(corpus, config, index, count, listener, warn, device)
    ready()
    try:
        follower.run()
    finally:
        follower.listener.close()
    if follower.stop_asked:
        raise KeyboardInterrupt


class Follower(ServingLoop):
    """A server that is not the first of its run."""

    def __init__(
        self,
        corpus: Corpus,
        config: RunConfig,
        index: int,
        count: int,
        listener: Callable[[int], Listener],
        warn: Callable[[str], None],
        device: torch.device,
    ) -> None:
        self.config, self.index, self.num_shards = config, index, count
        self.stop_asked = self.ended = False
        self._data = corpus.meta.fingerprint
        self._run_id: str | None = None
        self._ready = self._collected = self._handed_over = False
        counts_V = torch.from_numpy(corpus.counts_V)
        model = LanguageModel(
            config.model, config.loss, counts_V, config.run.seed, initialise=False
        ).to(device)
        num_parameters = sum(p.numel() for p in model.parameters())
        self.listener = listener(8 * num_parameters)
        exchange = config.exchange.for_workers(config.run.workers)
        self.shard = sliced_shard(
            model.tables(), model.blocks(), index, count, config.optim, exchange
        )
        self.server = Server(
            self.listener,
            self.shard,
            self,
            data=self._data,
            version=__version__,
            timeout_seconds=config.exchange.timeout_seconds,
            warn=warn,
        )
        self.server.on_lead = self._handle

    def run(self) -> None:
        """Answer until the run ends."""
        with stop_on_signals(self):
            while not (self.stop_asked or self.ended):
                self.turn()
            if not self.ended:
                self._hand_over()
            if self.ended:
                self.linger()

    def _hand_over(self) -> None:
        """After a request to stop, continue until the first server has the rows."""
        seconds = min(HANDOVER_SECONDS, self.config.exchange.timeout_seconds)
        deadline = monotonic() + seconds
        while self._ready and not (self.ended or self._handed_over) and monotonic() < deadline:
            self.turn()

    def _handle(self, client: bytes, kind: Kind, frame: Frame) -> None:
        """Handle a message of the first server; malformed ones are ignored."""
        try:
            content = json_of(frame)
            self._act_on(client, kind, content, frame.parts[1:])
        except UserError as error:
            self.listener.send(client, small_message(Kind.REFUSED, text=str(error)))
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            pass

    def _act_on(
        self, client: bytes, kind: Kind, content: Mapping[str, Any], parts: Sequence[Tensor]
    ) -> None:
        match kind:
            case Kind.LEAD:
                self._answer_lead(client, content)
            # A late LOAD is ignored: it would undo pushes that have arrived meanwhile.
            case Kind.LOAD if content["run"] == self._run_id and not self._ready:
                tensors = restored(content["tensors"], parts)
                parameters = {
                    n.removeprefix(MODEL): t for n, t in tensors.items() if n.startswith(MODEL)
                }
                load_shard(self.shard, parameters, tensors)
                self.server.forget()
                self._ready = True
            case Kind.COLLECT if content["run"] == self._run_id and self._ready:
                if self.stop_asked and content["optimizers"]:
                    self._collected = True
                    self.server.hold()  # what comes from now on would be lost
                with self.shard.flushed():
                    held = {f"{MODEL}{n}": t for n, t in parameters_of(self.shard).items()}
                    held |= optimizers_of(self.shard) if content["optimizers"] else {}
                    answer = {"request": content["request"], "tensors": described(held)}
                    collected = json_message(Kind.COLLECTED, answer, contents(held))
                self.listener.send(client, collected)
            case Kind.END if content["run"] == self._run_id:
                self.server.stop(content["why"], failed=content["failed"])
                self.ended = True
            case _:
                pass

    def _answer_lead(self, client: bytes, lead: Mapping[str, Any]) -> None:
        refusal = self._refusal(lead)
        if refusal is not None:
            self.listener.send(client, small_message(Kind.REFUSED, text=refusal))
            return
        if lead["run"] != self._run_id:
            self._run_id, self._ready = lead["run"], False
            self.shard.drop_gradients()
            self.server.forget()
        self._handed_over = self._collected and bool(lead["handed_over"])
        status = {"ready": self._ready, "leaving": self.stop_asked, "request": lead["request"]}
        self.listener.send(client, json_message(Kind.STATUS, status))

    def _refusal(self, lead: Mapping[str, Any]) -> str | None:
        """Why this server cannot serve that run: a sentence with both values."""
        own: dict[str, Any] = {
            "protocol": PROTOCOL,
            "thinwire": __version__,
            "data": self._data,
            "shard": self.index,
            "num_shards": self.num_shards,
        }
        for name, value in own.items():
            if lead[name] != value:
                return f"the first server has {name} {lead[name]}, and one of the others {value}"
        settings = asdict(self.config)
        for section in SAME:
            for name, value in settings[section].items():
                theirs = lead["settings"][section].get(name)
                if theirs != value:
                    return (
                        f"{section}.{name} is {theirs} at the first server, and {value} at shard "
                        f"{self.index}: give all servers the same settings"
                    )
        return None

    # What the server asks its controller

    def welcome(self, session: Session, before: Session | None) -> dict[str, Any] | None:
        """See `Controller`."""
        if not self._ready:
            return None
        return {
            "run": self._run_id,
            "shard": self.index,
            "num_shards": self.num_shards,
            "slot": 0,
            "position": list(Position()),
            "settings": {},
        }

    def on_leave(self, session: Session, why: str) -> None:
        """See `Controller`."""

    def check_push(self, session: Session, push: Push) -> None:
        """See `Controller`."""
        # Schedules multiply rates by 1 at most.
        if not 0.0 <= push.factor <= 1.0:
            raise ValueError(f"a schedule has no factor of {push.factor}")
        self.shard.factor = push.factor

    def push_refused(self, session: Session, why: Unusable) -> None:
        """See `Controller`; the first server ends a run that has diverged."""

    def push_done(self, session: Session, push: Push, staleness: Staleness | None) -> None:
        """See `Controller`."""
