"""Training: the loop of one worker, alone or among several that hold the same model.

A step is five calls, the same for one worker and for many:

    touch      which rows the batch and the step's sample need
    fetch      the exchange makes those rows current
    loss       hidden states, then the loss over the touched words
    backward   gradients of what was touched
    push       the exchange agrees on them and has the row-wise update applied

The first worker keeps the record: it decides when to stop, to evaluate and to save, and the others
follow what it said after the last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.data.batches import Batches
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.exchange.build import make_exchange
from thinwire.language_model import Task
from thinwire.locks import one_writer
from thinwire.models.contract import State
from thinwire.models.noise import Noise
from thinwire.runs.device import set_up_device
from thinwire.runs.folder import RunFolder, resumed_folder
from thinwire.runs.precision import with_precision, with_precision_of_first
from thinwire.runs.run import Run
from thinwire.runs.signals import stop_on_signals
from thinwire.train.barrier import Result, keep_alive_barrier
from thinwire.train.replicas import (
    check_replicas,
    gathered_state,
    hand_out,
    introduce,
    scattered_state,
)
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective, Pending


def train(
    data: Path,
    out: Path,
    config: RunConfig,
    *,
    resume: bool = False,
    collective: Collective | None = None,
) -> None:
    """Train a language model on the data folder `data` and leave it in the run folder `out`.

    Ctrl+C saves and raises KeyboardInterrupt. With `resume` a run goes on from its newest whole
    step, or from the beginning if it was stopped before it saved one; its budgets may have grown.
    Every worker of `collective` calls this; only the first one uses `out`.

    Raises:
        UserError: what the user can mend, among it a run whose loss is no longer finite, and a run
            folder that another process writes.
    """
    leads = collective is None or collective.rank == 0
    with one_writer(out) if leads else nullcontext():
        _train(data, out, config, resume, collective)


def _train(
    data: Path, out: Path, config: RunConfig, resume: bool, collective: Collective | None
) -> None:
    corpus = Corpus.open(data)
    if not len(corpus.ids("valid")):
        raise UserError(
            f"{data} has no validation text: prepare it again with --valid FILE or --valid 0.01"
        )
    device = set_up_device(config)
    folder = None
    if collective is None or collective.rank == 0:
        folder = (resumed_folder if resume else RunFolder.planned)(out, config, corpus)
        folder = replace(folder, config=with_precision(folder.config, device))
    first = config if folder is None else folder.config
    config = with_precision_of_first(config, first, collective or Alone())
    trainer = Trainer(folder, config, corpus, device, collective)
    introduce(trainer.collective, config, corpus)
    trainer.restore(resume=resume)
    # Only now, so that settings which do not fit the data leave no run behind.
    if folder is not None:
        if resume:
            folder.write_config()
        else:
            folder.write(corpus)
    try:
        trainer.run(resumed=resume)
    finally:
        if trainer.checkpoints is not None:  # before another process may write
            trainer.checkpoints.finish()


@dataclass(frozen=True)
class Agreed:
    """What all workers know after a step: the mean loss of the latest steps (so many as they had
    not spoken of before), and what the first worker has decided."""

    loss: float = 0.0
    num_steps: int = 0
    stop: bool = False
    progress: float = 0.0
    evaluate: bool = False
    save: bool = False


class Trainer:
    """One worker that holds the whole model: its part of the data, and the loop over it."""

    def __init__(
        self,
        folder: RunFolder | None,
        config: RunConfig,
        corpus: Corpus,
        device: torch.device,
        collective: Collective | None = None,
    ) -> None:
        self.config = config
        self.collective = collective or Alone()
        self.job = Run(folder, config, corpus, device, self.collective.size)
        self.model, self.checkpoints = self.job.model, self.job.checkpoints
        self.exchange = make_exchange(
            self.job.updater, self.collective, config.exchange, config.run.seed
        )
        self.batches = Batches(
            corpus.ids("train"),
            config.data,
            seed=config.run.seed,
            eos_id=corpus.meta.eos_id,
            worker=self.collective.rank,
            num_workers=self.collective.size,
            num_before=self.model.num_before,
        )
        self.position = self.batches.state_dict()
        """Where reading stands, the batch in `task` not counted."""
        self.task: Task | None = None
        self.state: State | None = None
        self._shares: list[float] = []
        """This worker's shares of the losses that the others have not heard of."""
        self._agreed = Agreed()
        self._wire_before: Mapping[str, float] = {}
        """The account of the wire when the run was saved that this one goes on with."""

    def run(self, *, resumed: bool = False) -> None:
        """Train until the budget is spent; then evaluate, save and record the end."""
        with stop_on_signals(self.job), self.job.recording(resumed=resumed):
            self._loop()
        if self.job.stop_asked:
            raise KeyboardInterrupt

    def _loop(self) -> None:
        job = self.job
        agreed = self._hear(self._tell())
        while not (agreed.stop or agreed.progress >= 1.0 or job.out_of_patience):
            job.set_rates(agreed.progress)
            agreed = self.train_step()
            for _ in range(agreed.num_steps):
                job.observe(agreed.loss)
            # Only where the workers have spoken is the account of the wire that of this step.
            if agreed.num_steps and job.report_due:
                job.report()
            if agreed.evaluate:
                self._evaluate()
            if agreed.save:
                self.save()
        self.exchange.flush()
        self._hear(self._tell())
        with job.clock.paused():
            job.report()
        if not job.evaluated and not agreed.stop:
            self._evaluate()
        self.save()
        # All leave together: whoever restarts them can do so only while none has ended well.
        with self._barrier():
            if job.checkpoints is not None:
                job.checkpoints.wait()
        job.stop_asked = agreed.stop
        job.end()

    def train_step(self) -> Agreed:
        """One step: touch, fetch, loss, backward, push."""
        if self.task is None:
            self._touch()
        task, job = self.task, self.job
        assert task is not None
        num_targets = task.batch.num_targets
        rows = self.exchange.fetch(task.touched)
        total, self.state = self.model.loss(task, rows, self.state, self._noise())
        share = total / num_targets
        job.advance(num_targets, self.batches.epoch)
        self._shares.append(float(share.detach()))
        told = None
        if self.exchange.meets() or job.spent_for_certain:
            told = self._tell()
        # What an exchange does not add up over all workers stands for all of them.
        (share * (self.collective.size / self.exchange.num_added)).backward()
        norm = self.exchange.push(task.touched, rows, meanwhile=self._touch)
        agreed = self._hear(told)
        self._agreed = replace(agreed, num_steps=0, evaluate=False, save=False)
        if not (isfinite(agreed.loss) and isfinite(norm)):
            loss_or_norm = f"the gradient's norm is {norm}"
            if not isfinite(agreed.loss):
                loss_or_norm = f"the loss is {agreed.loss}"
            job.take_back(num_targets)
            raise job.diverged(f"{loss_or_norm} at step {job.step + 1}")
        return agreed

    def _touch(self) -> None:
        """Look at the next batch, draw its sample, and let the exchange know what it needs."""
        self.position = self.batches.state_dict()
        batch = next(self.batches).to(self.job.device)
        worker, workers = self.collective.rank, self.collective.size
        draw = self.config.exchange.draw(self.job.step, worker, workers)
        self.task = self.model.touch(batch, draw)
        self.exchange.announce(self.task.touched)

    def _noise(self) -> Noise | None:
        if self.config.model.dropout == 0.0:
            return None
        seed, B = self.config.run.seed, self.config.data.batch
        first_stream = self.collective.rank * B
        return Noise(self.config.model.dropout, seed, self.job.step, first_stream, B)

    def _tell(self) -> Pending[list[float]]:
        """Post this worker's share of the loss, its account of the wire and, if it is the first
        worker, what it decides: added up over all workers, everybody will know."""
        job, decided = self.job, [0.0] * 3
        if self.collective.rank == 0:
            decided = [job.progress(), job.evaluation_due(), job.save_due()]
        wire = self.exchange.record().values()
        return self.exchange.total([sum(self._shares), job.stop_asked, *decided, *wire])

    def _hear(self, told: Pending[list[float]] | None) -> Agreed:
        """What was told; where nothing was, what has been known."""
        if told is None:
            return self._agreed
        loss, stop, progress, evaluate, save, *wire = told.wait()
        names = self.exchange.record().keys()
        W = self.collective.size
        self.job.wire = {
            # Bytes of all workers together; seconds of the average one.
            name: self._wire_before.get(name, 0)
            + (value / W if name.endswith("seconds") else round(value))
            for name, value in zip(names, wire, strict=True)
        }
        # Several workers stop together, after what they said; one alone need not wait so long.
        stops = stop > 0 or (W == 1 and self.job.stop_asked)
        num_steps = len(self._shares)
        self._shares.clear()
        return Agreed(loss / max(1, num_steps), num_steps, stops, progress, evaluate > 0, save > 0)

    def _evaluate(self) -> None:
        """The first worker measures, and all take note."""
        job = self.job
        self.exchange.flush()
        with job.clock.paused():
            if self.config.exchange.check_replicas:
                check_replicas(self.collective, {**job.tables, **job.blocks})
            with self._barrier() as result:
                found = job.measure() if self.collective.rank == 0 else None
                result.number = found.ppl if found else 0.0
            best = job.take_evaluation(result.number, found)
        if best:
            self.save(best=True)

    def save(self, *, best: bool = False) -> None:
        """Save this step, if it is not saved yet; the first worker writes."""
        self.exchange.flush()
        with self.job.clock.paused():
            self.exchange.merge_optimizers()
            carry = gathered_state(self.collective, self.state or (), self.exchange.state())
            with self._barrier():
                self.job.save(carry, self.position, best=best)

    def restore(self, *, resume: bool) -> None:
        """Go on from the newest whole step, if there is one; the first worker hands it out.

        Only what the first worker says of `resume` counts.
        """
        job = self.job
        carry: Mapping[str, Tensor] = {}
        state = None
        if resume and job.checkpoints is not None and job.checkpoints.newest is not None:
            saved = job.load()
            carry, state = saved.open("carry"), saved.state | {"step": saved.step}
        state, carry = hand_out(self.collective, job, state, carry)
        if state is None:
            return
        same_streams = self.batches.load_state_dict(state["batches"])
        self.position = self.batches.state_dict()
        job.epochs = self.batches.epoch
        self._wire_before = {name: state.get(name, 0) for name in self.exchange.record()}
        streams, exchange = scattered_state(self.collective, carry, self.exchange.state())
        self.exchange.load_state(job.step, exchange)
        if same_streams and streams:
            self.state = tuple(s.to(job.device) for s in streams)

    def _barrier(self) -> AbstractContextManager[Result]:
        if self.collective.size == 1:
            return nullcontext(Result())
        patience_seconds = self.config.exchange.timeout_seconds / 4
        return keep_alive_barrier(self.exchange, self.collective.rank == 0, patience_seconds)
