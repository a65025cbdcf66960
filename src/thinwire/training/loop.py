"""Training: the loop of one worker, alone or among several that hold the same model.

A step is six calls, the same for one worker and for many; the next batch's `touch` comes before
`update`, while gradients travel:

    touch      which rows the batch and the step's sample need
    fetch      the exchange makes those rows current
    loss       hidden states, then the loss over the touched words
    backward   gradients of what was touched
    push       they leave for the other workers
    update     the merged gradients arrive, and the row-wise update is applied

The first worker keeps the record: it decides when to stop, to evaluate and to save, and the others
follow what it said after the last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.data.batches import Batches
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.exchange.build import make_exchange
from thinwire.exchange.contract import Traffic
from thinwire.language_model import Task
from thinwire.locks import one_writer
from thinwire.models.contract import State
from thinwire.models.noise import Noise
from thinwire.runs.device import set_up_device
from thinwire.runs.folder import RunFolder, resumed_folder
from thinwire.runs.metrics import OnEvent
from thinwire.runs.precision import with_precision, with_precision_of_first
from thinwire.runs.run import Run
from thinwire.runs.signals import stop_on_signals
from thinwire.training.agreement import Agreed, Statement
from thinwire.training.barrier import Result, keep_alive_barrier
from thinwire.training.replicas import (
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
    on_event: OnEvent | None = None,
) -> None:
    """Train a language model on the data folder `data` and leave it in the run folder `out`.

    Ctrl+C saves and raises KeyboardInterrupt. With `resume` a run goes on from its newest whole
    step, or from the beginning if it was stopped before it saved one; its budgets may have grown.
    Every worker of `collective` calls this; only the first one uses `out`. `on_event` hears of each
    line of metrics.jsonl, as a dict, and ends the run as a spent budget does by returning False.

    Raises:
        UserError: what the user can mend, among it a run whose loss is no longer finite, and a run
            folder that another process writes.
    """
    leads = collective is None or collective.rank == 0
    with one_writer(out) if leads else nullcontext():
        _train(data, out, config, resume, collective, on_event)


def _train(
    data: Path,
    out: Path,
    config: RunConfig,
    resume: bool,
    collective: Collective | None,
    on_event: OnEvent | None,
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
    trainer = Trainer(folder, config, corpus, device, collective, on_event)
    introduce(trainer.collective, config, corpus)
    trainer.restore(resume=resume)
    # Only now, so that settings which do not fit the data leave no run behind.
    if folder is not None:
        if resume:
            folder.write_config()
        else:
            folder.write(corpus)
    try:
        trainer.train(resumed=resume)
    finally:
        if trainer.checkpoints is not None:  # before another process may write
            trainer.checkpoints.finish()


class Trainer:
    """One worker that holds the whole model: its part of the data, and the loop over it."""

    def __init__(
        self,
        folder: RunFolder | None,
        config: RunConfig,
        corpus: Corpus,
        device: torch.device,
        collective: Collective | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.config = config
        self.collective = collective or Alone()
        self.run = Run(folder, config, corpus, device, self.collective.size, on_event)
        self.model, self.checkpoints = self.run.model, self.run.checkpoints
        self.exchange = make_exchange(
            self.run.updater, self.collective, config.exchange, config.run.seed
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

    def train(self, *, resumed: bool = False) -> None:
        """Train until the budget is spent; then evaluate, save and record the end."""
        with stop_on_signals(self.run), self.run.recording(resumed=resumed):
            self._loop()
        if self.run.stop_asked:
            raise KeyboardInterrupt

    def _loop(self) -> None:
        run = self.run
        agreed = self._hear(self._tell())
        while not (agreed.stop or agreed.progress >= 1.0 or run.out_of_patience):
            run.set_rates(agreed.progress)
            agreed = self.train_step()
            for _ in range(agreed.num_steps):
                run.observe(agreed.loss)
            # Only where the workers have spoken is the account of the wire that of this step.
            if agreed.num_steps and run.report_due:
                run.report()
            if agreed.evaluate:
                self._evaluate()
            if agreed.save:
                self.save()
        self.exchange.flush()
        self._hear(self._tell())
        with run.clock.paused():
            run.report()
        if not run.evaluated and not agreed.stop:
            self._evaluate()
        self.save()
        # All leave together: whoever restarts them can do so only while none has ended well.
        with self._barrier():
            if run.checkpoints is not None:
                run.checkpoints.wait()
        run.stop_asked = agreed.stop
        run.end()

    def train_step(self) -> Agreed:
        """One step: touch, fetch, loss, backward, push, update."""
        if self.task is None:
            self._touch()
        task, run = self.task, self.run
        assert task is not None
        num_targets = task.batch.num_targets
        rows = self.exchange.fetch(task.touched)
        total, self.state = self.model.loss(task, rows, self.state, self._noise())
        share = total / num_targets
        run.advance(num_targets, self.batches.epoch)
        self._shares.append(float(share.detach()))
        told = None
        if self.exchange.meets() or run.spent_for_certain:
            told = self._tell()
        # What an exchange does not add up over all workers stands for all of them.
        (share * (self.collective.size / self.exchange.num_added)).backward()
        self.exchange.push(task.touched, rows, run.blocks)
        self._touch()  # the next batch, while gradients travel
        norm = self.exchange.update()
        agreed = self._hear(told)
        self._agreed = replace(agreed, num_steps=0, evaluate=False, save=False)
        if not (isfinite(agreed.loss) and isfinite(norm)):
            loss_or_norm = f"the gradient's norm is {norm}"
            if not isfinite(agreed.loss):
                loss_or_norm = f"the loss is {agreed.loss}"
            run.take_back(num_targets)
            raise run.diverged(f"{loss_or_norm} at step {run.step + 1}")
        return agreed

    def _touch(self) -> None:
        """Look at the next batch, draw its sample, and let the exchange know what it needs."""
        self.position = self.batches.state_dict()
        batch = next(self.batches).to(self.run.device)
        worker, workers = self.collective.rank, self.collective.size
        draw = self.config.exchange.draw(self.run.step, worker, workers)
        self.task = self.model.touch(batch, draw)
        self.exchange.announce(self.task.touched)

    def _noise(self) -> Noise | None:
        if self.config.model.dropout == 0.0:
            return None
        seed, B = self.config.run.seed, self.config.data.batch
        first_stream = self.collective.rank * B
        return Noise(self.config.model.dropout, seed, self.run.step, first_stream, B)

    def _tell(self) -> Pending[list[float]]:
        """Post this worker's share of the loss, its account of the wire and, if it is the first
        worker, what it decides: added up over all workers, everybody will know."""
        run, first = self.run, self.collective.rank == 0
        said = Statement(
            loss=sum(self._shares),
            stop=run.stop_asked,
            progress=run.progress() if first else 0.0,
            evaluate=run.evaluation_due() if first else False,
            save=run.save_due() if first else False,
            traffic=self.exchange.traffic() or Traffic(),
        )
        return self.exchange.total(said.numbers())

    def _hear(self, told: Pending[list[float]] | None) -> Agreed:
        """What was told; where nothing was, what has been known."""
        if told is None:
            return self._agreed
        said, W = Statement.read(told.wait()), self.collective.size
        if self.exchange.traffic() is not None:
            traffic = said.traffic.of_all(W).items()
            self.run.wire = {name: self._wire_before.get(name, 0) + n for name, n in traffic}
        # Several workers stop together, after what they said; one alone need not wait so long.
        stops = said.stop > 0 or (W == 1 and self.run.stop_asked)
        num_steps = len(self._shares)
        self._shares.clear()
        loss = said.loss / max(1, num_steps)
        return Agreed(loss, num_steps, stops, said.progress, said.evaluate > 0, said.save > 0)

    def _evaluate(self) -> None:
        """The first worker measures, and all take note."""
        run = self.run
        self.exchange.flush()
        with run.clock.paused():
            if self.config.exchange.check_replicas:
                check_replicas(self.collective, {**run.tables, **run.blocks})
            with self._barrier() as result:
                found = run.measure() if self.collective.rank == 0 else None
                result.number = found.ppl if found else 0.0
            best = run.take_evaluation(result.number, found)
        if best:
            self.save(best=True)

    def save(self, *, best: bool = False) -> None:
        """Save this step, if it is not saved yet; the first worker writes."""
        self.exchange.flush()
        with self.run.clock.paused():
            self.exchange.merge_optimizers()
            carry = gathered_state(self.collective, self.state or (), self.exchange.state())
            with self._barrier():
                self.run.save(carry, self.position, best=best)

    def restore(self, *, resume: bool) -> None:
        """Go on from the newest whole step, if there is one; the first worker hands it out.

        Only what the first worker says of `resume` counts.
        """
        run = self.run
        carry: Mapping[str, Tensor] = {}
        state = None
        if resume and run.checkpoints is not None and run.checkpoints.newest is not None:
            saved = run.load()
            carry, state = saved.open("carry"), saved.state | {"step": saved.step}
        state, carry = hand_out(self.collective, run, state, carry)
        if state is None:
            return
        same_streams = self.batches.load_state_dict(state["batches"])
        self.position = self.batches.state_dict()
        run.epochs = self.batches.epoch
        self._wire_before = {name: state.get(name, 0) for name in Traffic._fields}
        streams, exchange = scattered_state(self.collective, carry, self.exchange.state())
        self.exchange.load_state(run.step, exchange)
        if same_streams and streams:
            self.state = tuple(s.to(run.device) for s in streams)

    def _barrier(self) -> AbstractContextManager[Result]:
        if self.collective.size == 1:
            return nullcontext(Result())
        patience_seconds = self.config.exchange.timeout_seconds / 4
        return keep_alive_barrier(self.exchange, self.collective.rank == 0, patience_seconds)
