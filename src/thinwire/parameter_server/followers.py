"""Several servers of one run: the first one leads, and the others follow.

Each holds every M-th row of every parameter and answers the workers' pulls and pushes of those. The
first one also keeps the record. Once a second it tells each of the others which run they serve
(LEAD), and learns whether that one is ready (LED); one that has been started, or started again, is
not, and is given its rows as the first server has them (TAKE): as of the last evaluation or save.
Before evaluating and saving the first server asks for all rows (GIVE, SLICES). When the run ends it
says so (END).

Learning rates follow the workers' pushes, which carry the factor that the first server gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch
from torch import Tensor

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.parameter_server.protocol import (
    PROTOCOL,
    Kind,
    Position,
    Push,
    json_of,
    read_message,
    say,
    say_json,
    text_of,
)
from thinwire.parameter_server.sessions import LIFE_SECONDS, Server, Session
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
    sliced_shard,
)
from thinwire.parameter_server.staleness import Lateness
from thinwire.language_model import LanguageModel
from thinwire.parameter_server.serving_loop import POLL_SECONDS, Answering
from thinwire.runs.device import set_up_device
from thinwire.runs.run import Run
from thinwire.runs.signals import stop_on_signals
from thinwire.transport.messages import Door, Line
from thinwire.wire.frames import Frame

AGAIN_SECONDS = 0.05
# What servers of one run must have in common.
SAME = ("model", "loss", "data", "optim", "exchange")


class Others:
    """The other servers of a run, as the first one sees them.

    Args:
        lines: to them, in the order of their shards, from shard 1 on.
        job: the run, whose model takes in what they hold.
        shard: the first server's own rows.
        run_id: the run's name.
        settings: all settings of the run, as JSON has them.
        warn: says a sentence to people.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        job: Run,
        shard: Shard,
        run_id: str,
        settings: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self.lines, self.job, self.shard = lines, job, shard
        self._lead = {
            "protocol": PROTOCOL,
            "thinwire": __version__,
            "data": job.corpus.meta.fingerprint,
            "run": run_id,
            "num_shards": 1 + len(lines),
            "settings": settings,
        }
        self._warn = warn
        self._timeout_seconds = job.config.exchange.timeout_seconds
        self._ready = [False] * len(lines)
        self._was_ready = [False] * len(lines)
        self._heard = [monotonic()] * len(lines)
        self._lead_due = 0.0
        self._num_requests = 0

    def gather_round(self, stopping: Callable[[], bool]) -> None:
        """Wait until all are ready; first load this server's own rows.

        Raises:
            UserError: one refuses, or does not answer in time.
        """
        parameters, optimizers = self._own(0)
        load_shard(self.shard, parameters, optimizers)
        self._heard = [monotonic()] * len(self.lines)
        while not all(self._ready) and not stopping():
            self.look_after(POLL_SECONDS)
            self._complain()

    def _complain(self) -> None:
        for line, ready, heard in zip(self.lines, self._ready, self._heard, strict=True):
            if not ready and monotonic() - heard > self._timeout_seconds:
                raise UserError(
                    f"the server {line.server} has not answered for {self._timeout_seconds:g} "
                    "seconds: is it running, and has it the same key?"
                )

    def look_after(self, timeout_seconds: float = 0.0) -> None:
        """Once a second, learn how they are; give their rows to those who have none.

        Raises:
            UserError: one refuses.
        """
        if monotonic() >= self._lead_due:
            self._lead_due = monotonic() + LIFE_SECONDS
            for index, line in enumerate(self.lines):
                line.send(say_json(Kind.LEAD, self._lead | {"shard": index + 1}))
        for index, line in enumerate(self.lines):
            while (message := line.receive(timeout_seconds)) is not None:
                timeout_seconds = 0.0
                try:
                    kind, frame = read_message(message)
                except ValueError:
                    continue
                self._take(index, kind, frame)

    def _take(self, index: int, kind: Kind, frame: Frame) -> None:
        self._heard[index] = monotonic()
        if kind is Kind.REFUSED:
            raise UserError(text_of(frame))
        if kind is not Kind.LED:
            return
        self._ready[index] = bool(json_of(frame)["ready"])
        if self._ready[index]:
            self._was_ready[index] = True
            return
        if self._was_ready[index]:
            self._was_ready[index] = False
            self._warn(
                f"the server {self.lines[index].server} has been started again; its rows are those "
                "of the last evaluation or save"
            )
        parameters, optimizers = self._own(index + 1)
        held = {f"{MODEL}{n}": t for n, t in parameters.items()} | optimizers
        content = {"run": self._lead["run"], "tensors": described(held)}
        self.lines[index].send(say_json(Kind.TAKE, content, contents(held)))

    def _own(self, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        job, M = self.job, 1 + len(self.lines)
        parameters = {n: p.detach() for n, p in (*job.tables.items(), *job.blocks.items())}
        return cut(parameters, index, M), cut(job.optimizer_state(), index, M)

    def collect(self, *, optimizers: bool) -> None:
        """Put the rows of all servers into the run's model and, if asked for, into its optimisers.

        Raises:
            UserError: one does not answer in time; nothing was changed.
        """
        deadline = monotonic() + self._timeout_seconds
        slices = self._all_slices(optimizers)
        # Where a push is still on its way to one of them, its optimisers may be a step behind.
        while any(part.keys() != slices[0].keys() for part in slices):
            if monotonic() > deadline:
                raise UserError(
                    f"not all servers have made their first step, so step {self.job.step} is "
                    "neither evaluated nor saved"
                )
            sleep(AGAIN_SECONDS)
            slices = self._all_slices(optimizers)
        whole = merged(slices)
        with torch.no_grad():
            for name, parameter in {**self.job.tables, **self.job.blocks}.items():
                parameter.copy_(whole.pop(f"{MODEL}{name}"))
        if optimizers:
            self.job.load_optimizer_state(whole)

    def _all_slices(self, optimizers: bool) -> list[dict[str, Tensor]]:
        self._num_requests += 1
        request = {"request": self._num_requests, "optimizers": optimizers}
        for line in self.lines:
            line.send(say_json(Kind.GIVE, request))
        own = {f"{MODEL}{n}": t for n, t in parameters_of(self.shard).items()}
        own |= optimizers_of(self.shard) if optimizers else {}
        return [own, *(self._slices(index) for index in range(len(self.lines)))]

    def _slices(self, index: int) -> dict[str, Tensor]:
        deadline, line = monotonic() + self._timeout_seconds, self.lines[index]
        while (left := deadline - monotonic()) > 0:
            message = line.receive(min(left, LIFE_SECONDS))
            if message is None:
                continue
            with suppress(ValueError):
                kind, frame = read_message(message)
                if kind is Kind.SLICES:
                    content = json_of(frame)
                    if content["request"] == self._num_requests:
                        return restored(content["tensors"], frame.parts[1:])
        raise UserError(
            f"the server {line.server} has not answered for {self._timeout_seconds:g} seconds, so "
            f"step {self.job.step} is neither evaluated nor saved"
        )

    def end(self) -> None:
        """Tell them that the run has ended."""
        for line in self.lines:
            line.send(say_json(Kind.END, {"run": self._lead["run"]}))

    def close(self) -> None:
        """Hang up."""
        for line in self.lines:
            line.close()


def serve_shard(
    data: Path,
    config: RunConfig,
    index: int,
    count: int,
    *,
    door: Callable[[int], Door],
    ready: Callable[[], None] = lambda: None,
    warn: Callable[[str], None],
    threads: int | None = None,
) -> None:
    """Serve shard `index`, not the first, of `count`, until the first server says that it is over.

    Args:
        data: a copy of the first server's data folder.
        config: the first server's settings.
        index: which rows.
        count: how many servers.
        door: opens the server's door, for messages of so many bytes at most.
        ready: called when workers and the first server may come.
        warn: says a sentence to people.
        threads: of this server; None: `run.threads` or, if that is 0, the cores.

    Raises:
        UserError: what the user can mend.
    """
    corpus = Corpus.open(data)
    config = replace(config, exchange=replace(config.exchange, kind="async"))
    device = set_up_device(config, threads)
    follower = Follower(corpus, config, index, count, door, warn, device)
    ready()
    try:
        follower.run()
    finally:
        follower.door.close()
    if follower.stop_asked:
        raise KeyboardInterrupt


class Follower(Answering):
    """A server that is not the first of its run."""

    def __init__(
        self,
        corpus: Corpus,
        config: RunConfig,
        index: int,
        count: int,
        door: Callable[[int], Door],
        warn: Callable[[str], None],
        device: torch.device,
    ) -> None:
        self.config, self.index, self.num_shards = config, index, count
        self.stop_asked = self.ended = False
        self._data = corpus.meta.fingerprint
        self._run_id: str | None = None
        self._ready = False
        counts_V = torch.from_numpy(corpus.counts_V)
        model = LanguageModel(
            config.model, config.loss, counts_V, config.run.seed, initialise=False
        ).to(device)
        num_parameters = sum(p.numel() for p in model.parameters())
        self.door = door(8 * num_parameters)
        exchange = config.exchange.for_workers(config.run.workers)
        self.shard = sliced_shard(
            model.tables(), model.blocks(), index, count, config.optim, exchange
        )
        self.server = Server(
            self.door,
            self.shard,
            self,
            data=self._data,
            version=__version__,
            timeout_seconds=config.exchange.timeout_seconds,
            warn=warn,
        )
        self.server.on_lead = self._follow

    def run(self) -> None:
        """Answer until the run ends."""
        with stop_on_signals(self):
            while not (self.stop_asked or self.ended):
                self.turn()
            if self.ended:
                self.see_off()

    def _follow(self, client: bytes, kind: Kind, frame: Frame) -> None:
        """What the first server says; what it does not say is left alone."""
        try:
            content = json_of(frame)
            self._do(client, kind, content, frame.parts[1:])
        except UserError as error:
            self.door.send(client, say(Kind.REFUSED, text=str(error)))
        except (ValueError, KeyError, TypeError, AttributeError):
            pass

    def _do(
        self, client: bytes, kind: Kind, content: Mapping[str, Any], parts: Sequence[Tensor]
    ) -> None:
        match kind:
            case Kind.LEAD:
                self._led(client, content)
            # One that comes late, when workers have pushed already, must undo nothing.
            case Kind.TAKE if content["run"] == self._run_id and not self._ready:
                tensors = restored(content["tensors"], parts)
                parameters = {
                    n.removeprefix(MODEL): t for n, t in tensors.items() if n.startswith(MODEL)
                }
                load_shard(self.shard, parameters, tensors)
                self.server.forget()
                self._ready = True
            case Kind.GIVE:
                self.shard.settle()
                held = {f"{MODEL}{n}": t for n, t in parameters_of(self.shard).items()}
                held |= optimizers_of(self.shard) if content["optimizers"] else {}
                told = {"request": content["request"], "tensors": described(held)}
                self.door.send(client, say_json(Kind.SLICES, told, contents(held)))
            case Kind.END if content["run"] == self._run_id:
                self.server.stop("the first server has ended it")
                self.ended = True
            case _:
                pass

    def _led(self, client: bytes, lead: Mapping[str, Any]) -> None:
        refusal = self._refusal(lead)
        if refusal is not None:
            self.door.send(client, say(Kind.REFUSED, text=refusal))
            return
        if lead["run"] != self._run_id:
            self._run_id, self._ready = lead["run"], False
            self.server.forget()
        self.door.send(client, say_json(Kind.LED, {"ready": self._ready}))

    def _refusal(self, lead: Mapping[str, Any]) -> str | None:
        """Why this server cannot be of that run: a sentence with both values."""
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

    # What the server asks its steward

    def welcome(self, session: Session, before: Session | None) -> dict[str, Any] | None:
        """See `Steward`."""
        if not self._ready:
            return None
        return {
            "run": self._run_id,
            "shard": self.index,
            "num_shards": self.num_shards,
            "place": 0,
            "position": list(Position()),
            "settings": {},
        }

    def left(self, session: Session, why: str) -> None:
        """See `Steward`."""

    def expect(self, session: Session, push: Push) -> None:
        """See `Steward`."""
        self.shard.factor = push.factor

    def count(self, session: Session, push: Push, lateness: Lateness | None) -> None:
        """See `Steward`."""
