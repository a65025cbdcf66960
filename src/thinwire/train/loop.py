"""Training: the loop, and what it needs around it.

A step is five calls, the same for one worker and for many:

    touch      which rows the batch and the step's sample need
    fetch      the exchange makes those rows current
    loss       hidden states, then the loss over the touched words
    backward   gradients of what was touched
    push       the exchange agrees on them and has the row-wise update applied
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import replace
from math import isfinite, log
from pathlib import Path
from typing import Any

import torch

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.data.batches import Batches
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.exchange.local import Local
from thinwire.language_model import LanguageModel
from thinwire.models.noise import Noise
from thinwire.optim.build import dense_optimizer, row_optimizer
from thinwire.optim.schedules import Schedule
from thinwire.optim.state import load_named_state, named_state
from thinwire.train.checkpoints import Checkpoint, Checkpoints
from thinwire.train.clock import Budget, Clock, Every
from thinwire.train.device import find_device, reuse_freed_memory
from thinwire.train.evaluation import evaluate
from thinwire.train.metrics import Averages, MetricsWriter
from thinwire.train.progress import TrainingDisplay
from thinwire.train.run_folder import RunFolder, load_parameters
from thinwire.train.signals import stop_on_signals

# A smoothed loss so far above its lowest value will not come back; 2 nats are a factor of 7 in
# perplexity.
EXPLODED_NATS = 2.0
SMOOTHING_STEPS = 100
# A plateau schedule under a budget of tokens or epochs evaluates so often in a run: the clock must
# not steer the numbers there.
PLATEAU_EVALUATIONS = 20


def train(data: Path, out: Path, config: RunConfig, *, resume: bool = False) -> None:
    """Train a language model on the data folder `data` and leave it in the run folder `out`.

    Ctrl+C saves and raises KeyboardInterrupt. With `resume` a run goes on from its newest whole
    step, or from the beginning if it was stopped before it saved one; its budgets may have grown.

    Raises:
        UserError: what the user can mend, among it a run whose loss is no longer finite.
    """
    corpus = Corpus.open(data)
    if not len(corpus.ids("valid")):
        raise UserError(
            f"{data} has no validation text: prepare it again with --valid FILE or --valid 0.01"
        )
    device = set_up_device(config)
    folder = (_resumed if resume else RunFolder.planned)(out, config, corpus)
    trainer = Trainer(folder, config, corpus, device)
    if resume and trainer.checkpoints.newest is not None:
        trainer.restore()
    # Only now, so that settings which do not fit the data leave no run behind.
    if resume:
        folder.write_config()
    else:
        folder.write(corpus)
    trainer.run(resumed=resume)


def set_up_device(config: RunConfig) -> torch.device:
    """The device to compute on, with threads and memory set up."""
    reuse_freed_memory()
    torch.set_num_threads(config.run.threads or os.cpu_count() or 1)
    return find_device(config.run.device)


def _resumed(out: Path, config: RunConfig, corpus: Corpus) -> RunFolder:
    folder = RunFolder.open(out)
    if corpus.meta.fingerprint != folder.fingerprint:
        raise UserError(
            f"{out} was trained on a corpus with fingerprint {folder.fingerprint[:12]}, "
            f"but {corpus.path} has {corpus.meta.fingerprint[:12]}"
        )
    for section in ("model", "loss", "data", "optim"):
        saved, asked = getattr(folder.config, section), getattr(config, section)
        for name in vars(saved):
            if getattr(saved, name) != getattr(asked, name):
                raise UserError(
                    f"a resumed run keeps its settings, but {section}.{name} was "
                    f"{getattr(saved, name)} in {out} and is now {getattr(asked, name)}"
                )
    if folder.config.run.seed != config.run.seed:
        raise UserError(
            f"a resumed run keeps its seed: {out} has {folder.config.run.seed}, "
            f"not {config.run.seed}"
        )
    return replace(folder, config=config, data=corpus.path.resolve())


class Trainer:
    """One worker's run: everything that a step changes, and the loop over it."""

    def __init__(
        self, folder: RunFolder, config: RunConfig, corpus: Corpus, device: torch.device
    ) -> None:
        self.folder, self.config, self.corpus, self.device = folder, config, corpus, device
        counts_V = torch.from_numpy(corpus.counts_V)
        model = LanguageModel(config.model, config.loss, counts_V, config.run.seed)
        self.model = model.to(device)
        self.tables, self.blocks = self.model.tables(), self.model.blocks()
        self.exchange = Local(
            self.tables,
            self.blocks,
            row_optimizer(self.tables.values(), config.optim),
            dense_optimizer(self.blocks.values(), config.optim),
            config.optim.clip,
        )
        self.schedule = Schedule(config.optim)
        self.batches = Batches(
            corpus.ids("train"), config.data, seed=config.run.seed, eos_id=corpus.meta.eos_id
        )
        self.budget = Budget(config.run)
        self.clock = Clock()
        self.checkpoints = Checkpoints(folder.path, config.checkpoint.keep)
        self.state: tuple[torch.Tensor, ...] | None = None
        self.step = 0
        self.tokens = 0
        self.best_ppl = float("inf")
        self.smoothed_loss = log(self.model.vocab_size)
        self.lowest_loss = self.smoothed_loss
        self.stop_asked = False

    def run(self, *, resumed: bool = False) -> None:
        """Train until the budget is spent; then evaluate, save and record the end."""
        metrics = MetricsWriter(self.folder.path, tensorboard=self.config.metrics.tensorboard)
        with TrainingDisplay() as display, stop_on_signals(self):
            self._describe(metrics, display, resumed)
            self.clock.start()
            try:
                self._loop(metrics, display)
            except UserError as error:
                with suppress(OSError):  # on a full disk: what has gone wrong is said already
                    metrics.write("end", reason=str(error), step=self.step, **self._spent_record())
                raise
            finally:
                metrics.close()
        if self.stop_asked:
            raise KeyboardInterrupt

    def _loop(self, metrics: MetricsWriter, display: TrainingDisplay) -> None:
        evaluated = Every(self._eval_interval(), self._eval_clock())
        saved = Every(self.config.checkpoint.every_seconds, self.clock.seconds)
        averages = Averages(self.config.metrics, self.tokens, self.clock.seconds)
        evaluated_step = -1
        while not self.stop_asked and self.progress() < 1.0:
            averages.add(self.train_step())
            if averages.due(self.clock.seconds):
                self._report(averages, metrics, display)
            if evaluated.due(self._eval_clock()):
                with self.clock.paused():
                    self._evaluate(metrics, display)
                evaluated_step = self.step
            if saved.due(self.clock.seconds):
                with self.clock.paused():
                    self.save()
        with self.clock.paused():
            if averages.steps:
                self._report(averages, metrics, display)
            if evaluated_step != self.step and not self.stop_asked:
                self._evaluate(metrics, display)
            self.save()
            self.checkpoints.wait()
        reason = "interrupted" if self.stop_asked else self.budget.reason(**self._spent())
        metrics.write("end", reason=reason, step=self.step, **self._spent_record())

    def train_step(self) -> float:
        """One step; returns the mean loss a token in nats."""
        self._set_rates()
        batch = next(self.batches).to(self.device)
        task = self.model.touch(batch, self.step)
        rows = self.exchange.fetch(task.touched)
        total, state = self.model.loss(task, rows, self.state, self._noise())
        loss = float(total.detach()) / batch.num_targets
        if not isfinite(loss):
            raise self._diverged(f"the loss is {loss} at step {self.step + 1}")
        (total / batch.num_targets).backward()
        norm = self.exchange.push(task.touched, rows)
        if not isfinite(norm):
            raise self._diverged(f"the gradient's norm is {norm} at step {self.step + 1}")
        self.state = state
        self.step += 1
        self.tokens += batch.num_targets
        self._watch(loss)
        return loss

    def _set_rates(self) -> None:
        factor = self.schedule.factor(self.step, self.progress())
        for optimizer, rate in (
            (self.exchange.dense_optimizer, self.config.optim.lr),
            (self.exchange.row_optimizer, self.config.optim.row_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def _noise(self) -> Noise | None:
        if self.config.model.dropout == 0.0:
            return None
        return Noise(
            self.config.model.dropout, self.config.run.seed, self.step, 0, self.config.data.batch
        )

    def _watch(self, loss: float) -> None:
        """Stop a run whose smoothed loss has risen beyond hope."""
        self.smoothed_loss += (loss - self.smoothed_loss) / SMOOTHING_STEPS
        self.lowest_loss = min(self.lowest_loss, self.smoothed_loss)
        if self.smoothed_loss > self.lowest_loss + EXPLODED_NATS:
            raise self._diverged(
                f"the loss has risen from {self.lowest_loss:.2f} to {self.smoothed_loss:.2f} nats "
                f"a token by step {self.step}"
            )

    def _diverged(self, what: str) -> UserError:
        newest, best = self.checkpoints.newest, self.checkpoints.best
        kept = "no step had been saved yet"
        if newest is not None:
            kept = f"the newest state saved is step {newest}"
            kept += f", the best step {best}" if best not in (None, newest) else ""
        optim = self.config.optim
        return UserError(
            f"{what}, so training has stopped; {kept}. Try a lower --optim.lr (now {optim.lr:g}) "
            f"or --optim.row_lr (now {optim.row_lr:g}), more --optim.warmup_steps (now "
            f"{optim.warmup_steps}) or a tighter --optim.clip (now {optim.clip:g})"
        )

    def _report(self, averages: Averages, metrics: MetricsWriter, display: TrainingDisplay) -> None:
        found = averages.take(self.tokens, self.clock.seconds)
        spent = self._spent_record()
        rate = self.exchange.dense_optimizer.param_groups[0]["lr"]
        metrics.write("train", step=self.step, **spent, **found, lr=rate)
        display.train(
            progress=min(1.0, self.progress()),
            seconds=spent["seconds"],
            tokens=self.tokens,
            **found,
        )

    def _evaluate(self, metrics: MetricsWriter, display: TrainingDisplay) -> None:
        found = evaluate(
            self.model,
            self.corpus.ids("valid"),
            eos_id=self.corpus.meta.eos_id,
            unk_id=self.corpus.meta.unk_id,
            data=self.config.data,
            max_tokens=self.config.eval.tokens,
        )
        best = found.ppl < self.best_ppl
        self.best_ppl = min(found.ppl, self.best_ppl)
        self.schedule.observe(found.ppl)
        spent = self._spent_record()
        metrics.write(
            "valid",
            step=self.step,
            **spent,
            ppl=found.ppl,
            ppl_known=found.ppl_known,
            tokens_scored=found.tokens_scored,
        )
        display.valid(seconds=spent["seconds"], tokens=self.tokens, ppl=found.ppl, best=best)
        if best:
            self.save(best=True)

    def save(self, *, best: bool = False) -> None:
        """Save this step, if it is not saved yet."""
        if self.step in self.checkpoints.steps and not best:
            return
        self.checkpoints.save(
            self.step,
            {
                "model": {name: p.detach() for name, p in {**self.tables, **self.blocks}.items()},
                "optimizer": {**self._optimizer_state()},
                "carry": {f"state.{i}": s for i, s in enumerate(self.state or ())},
            },
            {
                "tokens": self.tokens,
                **self._spent_record(),
                "batches": self.batches.state_dict(),
                "schedule": self.schedule.state_dict(),
                "best_ppl": self.best_ppl if isfinite(self.best_ppl) else None,
                "smoothed_loss": self.smoothed_loss,
                "lowest_loss": self.lowest_loss,
            },
            best=best,
        )

    def restore(self) -> None:
        """Go on from the newest whole step."""
        saved: Checkpoint = self.checkpoints.load()
        load_parameters(self.model, saved)
        optimizer = saved.open("optimizer")
        load_named_state(
            self.exchange.row_optimizer, self._names(self.tables), _part(optimizer, "rows.")
        )
        load_named_state(
            self.exchange.dense_optimizer, self._names(self.blocks), _part(optimizer, "blocks.")
        )
        carry = saved.open("carry")
        # Copied: a product's last bit can depend on where in memory a factor lies.
        names = [f"state.{i}" for i in range(len(carry))]
        self.state = tuple(carry[name].to(self.device, copy=True) for name in names) or None
        state = saved.state
        self.step, self.tokens = saved.step, state["tokens"]
        self.clock = Clock(state["seconds"], state["wall_seconds"])
        self.batches.load_state_dict(state["batches"])
        self.schedule.load_state_dict(state["schedule"])
        self.best_ppl = float("inf") if state["best_ppl"] is None else state["best_ppl"]
        self.smoothed_loss, self.lowest_loss = state["smoothed_loss"], state["lowest_loss"]

    def _optimizer_state(self) -> dict[str, torch.Tensor]:
        rows = named_state(self.exchange.row_optimizer, self._names(self.tables))
        blocks = named_state(self.exchange.dense_optimizer, self._names(self.blocks))
        return {
            **{f"rows.{name}": tensor for name, tensor in rows.items()},
            **{f"blocks.{name}": tensor for name, tensor in blocks.items()},
        }

    @staticmethod
    def _names(parameters: dict[str, torch.nn.Parameter]) -> dict[torch.Tensor, str]:
        return {parameter: name for name, parameter in parameters.items()}

    def progress(self) -> float:
        """The part of the budget that is spent."""
        return self.budget.progress(**self._spent())

    def _spent(self) -> dict[str, Any]:
        return {
            "seconds": self.clock.seconds,
            "tokens": self.tokens,
            "epochs": self.batches.epoch,
        }

    def _spent_record(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "seconds": round(self.clock.seconds, 3),
            "wall_seconds": round(self.clock.wall_seconds, 3),
        }

    def _eval_interval(self) -> float:
        """In seconds or, where the clock must not matter, in tokens."""
        every = self.config.eval
        if every.every_tokens:
            return every.every_tokens
        if self.config.optim.schedule == "plateau" and not self.budget.timed:
            epoch_tokens = (
                self.batches.steps_per_epoch * self.config.data.batch * self.config.data.length
            )
            run = self.config.run
            total = min(run.tokens or float("inf"), (run.epochs or float("inf")) * epoch_tokens)
            return total / PLATEAU_EVALUATIONS
        return every.every_seconds

    def _eval_clock(self) -> float:
        by_tokens = self.config.eval.every_tokens or (
            self.config.optim.schedule == "plateau" and not self.budget.timed
        )
        return self.tokens if by_tokens else self.clock.seconds

    def _describe(self, metrics: MetricsWriter, display: TrainingDisplay, resumed: bool) -> None:
        if resumed:
            metrics.write("resume", step=self.step, **self._spent_record())
            place = f"step {self.step}" if self.step else "the start, as no step was saved"
            display.note(f"Going on from {place}, in {self.folder.path}")
        num_rows = sum(p.numel() for p in self.tables.values())
        num_dense = sum(p.numel() for p in self.blocks.values())
        metrics.write(
            "start",
            step=self.step,
            versions={
                "thinwire": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            machine={
                "platform": platform.platform(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "device": str(self.device),
            },
            workers=1,
            parameters=num_rows + num_dense,
            config=self.config.fingerprint(),
            data=self.folder.fingerprint,
        )
        run = self.config.run
        budget = ", ".join(
            f"{value:,.6g} {name}"
            for name, value in self.budget.limits.items()
            if value is not None
        )
        display.note(
            f"{self.config.model.kind} of width {self.config.model.width}, "
            f"{(num_rows + num_dense) / 1e6:.1f} M parameters ({num_dense / 1e6:.2f} M dense), "
            f"{self.config.loss.kind} loss, {self.corpus.meta.vocab_size:,} words, "
            f"{torch.get_num_threads()} threads on {self.device}, seed {run.seed}; budget: {budget}"
        )


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
