"""The training loop of one worker, which is alone or holds the same model as the other workers.

A step has six calls, the same for one worker and for many. The next batch is touched before
`update`, while gradients are being sent:

    touch      find the rows that the batch and the step's sample need
    fetch      the exchange brings those rows up to date
    loss       compute hidden states, then the loss over the touched words
    backward   compute the gradients of the touched rows and of the blocks
    push       start to send the gradients to the other workers
    update     wait for the merged gradients, and apply the row-wise update

The first worker writes the run folder. It decides when to evaluate and to save, and when the budget
is spent; all workers follow the agreement of the last step (`agreement.py`).
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
from thinwire.exchange.build import make_exchange
from thinwire.exchange.contract import Traffic
from thinwire.language_model import Task
from thinwire.locks import one_writer
from thinwire.models.contract import State
from thinwire.models.dropout import DropoutMasks
from thinwire.runs.device import set_up_device
from thinwire.runs.folder import RunFolder, resumed_folder
from thinwire.runs.metrics import OnEvent
from thinwire.runs.precision import with_precision, with_precision_of_first
from thinwire.runs.run import Run
from thinwire.runs.signals import stop_on_signals
from thinwire.training.agreement import Agreement, Status
from thinwire.training.barrier import Result, keep_alive_barrier
from thinwire.training.replicas import (
    broadcast_state,
    check_replicas,
    gathered_state,
    require_same_run,
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
    """Train a language model on the data folder `data` and save it in the run folder `out`.

    Ctrl+C saves a checkpoint and raises KeyboardInterrupt. Every worker of `collective` must call
    this function; only the first one writes to `out`.

    Args:
        data: the data folder.
        out: the run folder.
        config: all settings.
        resume: continue the run in `out` from its newest complete checkpoint, or from the start if
            it has none. The budgets may be larger than before.
        collective: the workers of the run; None: this worker is the only one.
        on_event: called with each line of metrics.jsonl, as a dict. If it returns False, the run
            ends as if its budget were spent.

    Raises:
        UserError: the user can correct the cause; for example, the loss is no longer finite, or
            another process writes to the run folder.
    """
    is_first = collective is None or collective.rank == 0
    with one_writer(out) if is_first else nullcontext():
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
    corpus.require_validation_text()
    device = set_up_device(config)
    folder = None
    if collective is None or collective.rank == 0:
        folder = (resumed_folder if resume else RunFolder.planned)(out, config, corpus)
        folder = replace(folder, config=with_precision(folder.config, device))
    first = config if folder is None else folder.config
    config = with_precision_of_first(config, first, collective or Alone())
    trainer = Trainer(folder, config, corpus, device, collective, on_event)
    require_same_run(trainer.collective, config, corpus)
    trainer.restore(resume=resume)
    # Written only now, so that no run folder is left if the settings do not fit the data.
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
    """The training loop of one worker that holds the whole model, over its part of the data."""

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
        """The state of `batches` before the batch of `task` was read."""
        self.task: Task | None = None
        self.state: State | None = None
        self._unreported_losses: list[float] = []
        """This worker's part of the loss of each step since its last report."""
        self._agreement = Agreement()
        self._earlier_traffic: Mapping[str, float] = {}
        """The traffic up to the checkpoint from which this run was resumed."""

    def train(self, *, resumed: bool = False) -> None:
        """Train until the budget is spent; then evaluate, save and record the end of the run."""
        with stop_on_signals(self.run), self.run.recording(resumed=resumed):
            self._loop()
        if self.run.stop_asked:
            raise KeyboardInterrupt

    def _loop(self) -> None:
        run = self.run
        agreed = self._take_agreement(self._post_status())
        while not (agreed.stop or agreed.progress >= 1.0 or run.out_of_patience):
            run.set_rates(agreed.progress)
            agreed = self.train_step()
            for _ in range(agreed.num_steps):
                run.observe(agreed.loss)
            # The traffic is up to date only after a step in which the workers reported.
            if agreed.num_steps and run.report_due:
                run.report()
            if agreed.evaluate:
                self._evaluate()
            if agreed.save:
                self.save()
        self.exchange.flush()
        self._take_agreement(self._post_status())
        with run.clock.paused():
            run.report()
        if not run.evaluated and not agreed.stop:
            self._evaluate()
        self.save()
        # No worker may exit before the last save: after one success, torchrun restarts no other.
        with self._barrier():
            if run.checkpoints is not None:
                run.checkpoints.wait()
        run.stop_asked = agreed.stop
        run.end()

    def train_step(self) -> Agreement:
        """One step: touch, fetch, loss, backward, push, update."""
        if self.task is None:
            self._touch()
        task, run = self.task, self.run
        assert task is not None
        num_targets = task.batch.num_targets
        rows = self.exchange.fetch(task.touched)
        total, self.state = self.model.loss(task, rows, self.state, self._dropout_masks())
        share = total / num_targets
        run.advance(num_targets, self.batches.epoch)
        self._unreported_losses.append(float(share.detach()))
        status = None
        if self.exchange.communicates() or run.spent_for_certain:
            status = self._post_status()
        # An exchange that does not sum over the workers applies the gradient as if it were the sum.
        (share * (self.collective.size / self.exchange.num_summed)).backward()
        self.exchange.push(task.touched, rows, run.blocks)
        self._touch()  # the next batch, while gradients are being sent
        norm = self.exchange.update()
        agreed = self._take_agreement(status)
        self._agreement = replace(agreed, num_steps=0, evaluate=False, save=False)
        if not (isfinite(agreed.loss) and isfinite(norm)):
            loss_or_norm = f"the gradient's norm is {norm}"
            if not isfinite(agreed.loss):
                loss_or_norm = f"the loss is {agreed.loss}"
            run.take_back(num_targets)
            raise run.diverged(f"{loss_or_norm} at step {run.step + 1}")
        return agreed

    def _touch(self) -> None:
        """Read the next batch, draw its sample, and announce the touched rows to the exchange."""
        self.position = self.batches.state_dict()
        batch = next(self.batches).to(self.run.device)
        worker, workers = self.collective.rank, self.collective.size
        sample_number = self.config.exchange.sample_number(self.run.step, worker, workers)
        self.task = self.model.touch(batch, sample_number)
        self.exchange.announce(self.task.touched)

    def _dropout_masks(self) -> DropoutMasks | None:
        if self.config.model.dropout == 0.0:
            return None
        seed, B = self.config.run.seed, self.config.data.batch
        first_stream = self.collective.rank * B
        return DropoutMasks(self.config.model.dropout, seed, self.run.step, first_stream, B)

    def _post_status(self) -> Pending[list[float]]:
        """Report this worker's status; returns the pending sum over all workers."""
        run, first = self.run, self.collective.rank == 0
        status = Status(
            loss=sum(self._unreported_losses),
            stop=run.stop_asked,
            progress=run.progress() if first else 0.0,
            evaluate=run.evaluation_due() if first else False,
            save=run.save_due() if first else False,
            traffic=self.exchange.traffic() or Traffic(),
        )
        return self.exchange.total(status.to_numbers())

    def _take_agreement(self, status: Pending[list[float]] | None) -> Agreement:
        """Wait for the sum of all workers' statuses; None: the last agreement still holds."""
        if status is None:
            return self._agreement
        total, W = Status.from_numbers(status.wait()), self.collective.size
        if self.exchange.traffic() is not None:
            traffic = total.traffic.over_workers(W).items()
            self.run.wire = {name: self._earlier_traffic.get(name, 0) + n for name, n in traffic}
        # Several workers stop together, as agreed; a single worker stops as soon as it is asked.
        stops = total.stop > 0 or (W == 1 and self.run.stop_asked)
        num_steps = len(self._unreported_losses)
        self._unreported_losses.clear()
        loss = total.loss / max(1, num_steps)
        return Agreement(loss, num_steps, stops, total.progress, total.evaluate > 0, total.save > 0)

    def _evaluate(self) -> None:
        """The first worker evaluates the model, and all workers receive its perplexity."""
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
        """Save this step, unless it is saved already. Only the first worker writes."""
        self.exchange.flush()
        with self.run.clock.paused():
            self.exchange.merge_optimizers()
            carry = gathered_state(self.collective, self.state or (), self.exchange.state())
            with self._barrier():
                self.run.save(carry, self.position, best=best)

    def restore(self, *, resume: bool) -> None:
        """Continue from the newest complete checkpoint, if any; the first worker broadcasts it.

        Only the first worker's `resume` has an effect.
        """
        run = self.run
        carry: Mapping[str, Tensor] = {}
        state = None
        if resume and run.checkpoints is not None and run.checkpoints.newest is not None:
            saved = run.load()
            carry, state = saved.open("carry"), saved.state | {"step": saved.step}
        state, carry = broadcast_state(self.collective, run, state, carry)
        if state is None:
            return
        same_streams = self.batches.load_state_dict(state["batches"])
        self.position = self.batches.state_dict()
        run.epochs = self.batches.epoch
        self._earlier_traffic = {name: state.get(name, 0) for name in Traffic._fields}
        streams, exchange = scattered_state(self.collective, carry, self.exchange.state())
        self.exchange.load_state(run.step, exchange)
        if same_streams and streams:
            self.state = tuple(s.to(run.device) for s in streams)

    def _barrier(self) -> AbstractContextManager[Result]:
        if self.collective.size == 1:
            return nullcontext(Result())
        interval_seconds = self.config.exchange.timeout_seconds / 4
        return keep_alive_barrier(self.exchange, self.collective.rank == 0, interval_seconds)
