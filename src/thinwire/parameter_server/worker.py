"""One worker of an asynchronous run.

A step is five calls, as in `training/loop.py`; the rows of the next one are pulled while this one
computes:

    touch      which rows the batch and its sample need
    fetch      the rows that the servers have changed arrive
    loss       hidden states, then the loss over the touched words
    backward   gradients of what was touched
    push       the gradients are sent to the servers, which update those rows; nobody waits

The servers tell the worker its settings and its part of the text. If the servers do not know it any
more, because they were restarted or it was away for too long, it joins like a new worker, and drops
the rows that it has. It keeps the residual of error feedback, unless the servers were restarted:
then these gradients belong to parameters that are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.data.batches import Batches
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel, Task
from thinwire.models.contract import State
from thinwire.models.dropout import DropoutMasks
from thinwire.parameter_server.client import Client
from thinwire.parameter_server.connections import (
    Interrupted,
    Lost,
    Servers,
    Stopped,
    Welcome,
)
from thinwire.parameter_server.protocol import Position
from thinwire.runs.device import set_up_device
from thinwire.runs.signals import stop_on_signals
from thinwire.seeds import derive
from thinwire.transport.messages import Connection

# Until the servers have told it `exchange.timeout_seconds`.
PATIENCE_SECONDS = 60.0


class Failed(UserError):
    """The run has failed; its first server says so, too."""


def work(
    data: Path,
    connections: Sequence[Connection],
    *,
    name: str,
    threads: int | None = None,
    device: str | None = None,
    on_status: Callable[[str], None] = lambda sentence: None,
) -> str:
    """Work for the servers until the run ends; return why it ended.

    Ctrl+C says goodbye to them and raises KeyboardInterrupt.

    Args:
        data: a copy of the servers' data folder.
        connections: to all servers of the run, in any order.
        name: this worker's name in sentences; a replacement has the name of the worker that it
            replaces.
        threads: compute threads; None: as in the run's settings.
        device: where to compute; None: as in the run's settings.
        on_status: called with sentences: which servers this worker waits for, and that it joined.

    Raises:
        Failed: the run has failed.
        UserError: the user can correct the cause.
    """
    try:
        corpus = Corpus.open(data)
    except BaseException:
        for connection in connections:
            connection.close()
        raise
    on_status(f"Waiting for {' and '.join(connection.server for connection in connections)}")
    return Worker(
        corpus, connections, name=name, threads=threads, device=device, on_status=on_status
    ).run()


@dataclass(frozen=True)
class _Step:
    """A task, the number of its targets, and the worker's position in the text after it."""

    task: Task
    num_targets: int
    position: Position
    draw: int


class Worker:
    """A copy of the model with rows from the servers, a part of the text, and the loop."""

    def __init__(
        self,
        corpus: Corpus,
        connections: Sequence[Connection],
        *,
        name: str,
        threads: int | None = None,
        device: str | None = None,
        on_status: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.corpus = corpus
        self.stop_asked = False
        self._threads, self._device, self._on_status = threads, device, on_status
        self.servers = Servers(
            connections,
            data=corpus.meta.fingerprint,
            version=__version__,
            name=name,
            timeout_seconds=PATIENCE_SECONDS,
            stopping=lambda: self.stop_asked,
        )
        self._model: LanguageModel | None = None
        self._joined: tuple[str, Client] | None = None

    def run(self) -> str:
        """Work until the run ends; return why it ended.

        Raises:
            Failed: the run has failed.
        """
        with stop_on_signals(self):
            try:
                while True:
                    try:
                        self._begin(self.servers.join())
                        while True:
                            self.step()
                    except Lost:
                        continue
            except Interrupted:
                raise KeyboardInterrupt from None
            except Stopped as stopped:
                if stopped.failed:
                    raise Failed(f"the run has failed: {stopped}") from None
                return str(stopped)
            finally:
                self.servers.goodbye()
                for connection in self.servers.connections:
                    connection.close()

    def _begin(self, welcome: Welcome) -> None:
        """Start at the slot that the first server has assigned."""
        self.config = RunConfig.from_dict(welcome.settings, "the server's settings")
        config = self.config
        self.servers.timeout_seconds = config.exchange.timeout_seconds
        if self._model is None:
            self._set_up(config)
        assert self._model is not None
        self.model = self._model
        slot, N, seed = welcome.slot, config.run.workers, config.run.seed
        self.slot, self.steps = slot, welcome.position.steps
        client = Client(
            self.servers,
            self.model.tables(),
            self.model.blocks(),
            config.exchange,
            config.optim.clip,
            derive(seed, "worker", str(slot)),
        )
        if self._joined is not None and self._joined[0] == welcome.run:
            client.take_over_feedback(self._joined[1])
        self._joined, self.client = (welcome.run, client), client
        self.batches = Batches(
            self.corpus.ids("train"),
            config.data,
            seed=seed if slot < N else derive(seed, "batches", str(slot // N)),
            eos_id=self.corpus.meta.eos_id,
            worker=slot % N,
            num_workers=N,
            num_before=self.model.num_before,
        )
        position = welcome.position
        self.batches.load_state_dict(
            self.batches.state_dict() | {"epoch": position.epoch, "step": position.step}
        )
        self.state: State | None = None
        self._next = self._look_ahead()
        self._on_status(f"Joined; this worker's part of the text is {slot % N + 1} of {N}.")

    def _set_up(self, config: RunConfig) -> None:
        device = set_up_device(config, self._threads, self._device)
        counts_V = torch.from_numpy(self.corpus.counts_V)
        # Not initialised: every row that is read is pulled first.
        seed = config.run.seed
        in_bf16 = config.run.precision == "bf16"
        model = LanguageModel(
            config.model, config.loss, counts_V, seed, initialise=False, in_bf16=in_bf16
        )
        self._model, self.device = model.to(device), device

    def step(self) -> None:
        """One step."""
        step = self._next
        rows = self.client.fetch(step.task.touched)
        # Here, so that the pull is answered while this worker computes. `fetch` later pulls again
        # the rows that have changed meanwhile.
        self._next = self._look_ahead()
        total, self.state = self.model.loss(
            step.task, rows, self.state, self._dropout_masks(step.draw)
        )
        loss = total / step.num_targets
        loss.backward()
        self.client.push(rows, float(loss.detach()), step.num_targets, step.position)

    def _look_ahead(self) -> _Step:
        """Read the next batch, draw its sample, and pull what they touch."""
        step = self._touch()
        self.client.pull_rows(step.task.touched)
        return step

    def _touch(self) -> _Step:
        while True:
            batch = next(self.batches)
            # If text is read line by line, this worker may run out of lines before the others.
            num_targets = int((batch.targets_BT >= 0).sum())
            if num_targets:
                break
        exchange, workers = self.config.exchange, self.config.run.workers
        draw = exchange.sample_number(self.steps, self.slot, workers)
        self.steps += 1
        state = self.batches.state_dict()
        position = Position(state["epoch"], state["step"], self.steps, self.batches.epoch)
        return _Step(self.model.touch(batch.to(self.device), draw), num_targets, position, draw)

    def _dropout_masks(self, draw: int) -> DropoutMasks | None:
        model, B = self.config.model, self.config.data.batch
        if model.dropout == 0.0:
            return None
        return DropoutMasks(model.dropout, self.config.run.seed, draw, self.slot * B, B)
