"""What a run keeps and records: the model and its optimisers, the counts, the clock, the files.

The loop of a worker, or a server of an asynchronous run, drives it: it counts steps, and calls
`report`, `measure` and `save` when they are due. `Run` knows what the counts are; `recorder` writes
them and shows them, `checkpoints` has the files of a step, `divergence` watches the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import isfinite, log
from typing import Any

import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.optim.schedules import Schedule
from thinwire.optim.state import load_named_state, named_state
from thinwire.optim.updater import Updater
from thinwire.runs.budget_change import budget_sentences
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.clock import Budget, Clock
from thinwire.runs.divergence import LossWatch, diverged_sentence
from thinwire.runs.due import Due
from thinwire.runs.evaluation import Evaluation, evaluate
from thinwire.runs.folder import RunFolder, load_parameters
from thinwire.runs.metrics import Averages, OnEvent
from thinwire.runs.opening import resume_sentences, start_values, summary
from thinwire.runs.reading import check_reading, read_from
from thinwire.runs.recorder import Recorder
from thinwire.runs.step_folder import Checkpoint


class Run:
    """A model in training, its budget and its record.

    Args:
        folder: the run folder; None: another process keeps it (for all workers but the first).
        config: all settings.
        corpus: the data folder.
        device: the device that has the model.
        num_workers: number of workers that train it.
        on_event: called with each line of the record; it stops the run by returning False.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        config: RunConfig,
        corpus: Corpus,
        device: torch.device,
        num_workers: int = 1,
        on_event: OnEvent | None = None,
    ) -> None:
        self.folder, self.config, self.corpus, self.device = folder, config, corpus, device
        self.num_workers = num_workers
        self.recorder = Recorder(folder.path if folder else None, config.metrics, on_event)
        counts_V = torch.from_numpy(corpus.counts_V)
        in_bf16 = config.run.precision == "bf16"
        model = LanguageModel(config.model, config.loss, counts_V, config.run.seed, in_bf16=in_bf16)
        self.model = model.to(device)
        self.tables, self.blocks = self.model.tables(), self.model.blocks()
        self.updater = Updater.of(self.tables, self.blocks, config.optim)
        # In an asynchronous run every worker's step counts as one.
        round_steps = num_workers if config.exchange.kind == "async" else 1
        self.schedule = Schedule(config.optim, round_steps)
        self.budget = Budget(config.run)
        self.clock = Clock()
        self.checkpoints = (
            Checkpoints(folder.path, config.checkpoint.keep) if folder is not None else None
        )
        self.step = 0
        self.tokens = 0
        self.lost_tokens = 0
        """The part of `tokens` whose training was lost with a killed server. Budgets ignore it."""
        self.epochs = 0.0
        self.best_ppl = float("inf")
        """The validation perplexity of the best step that has been saved."""
        self.num_worse = 0
        """Number of evaluations since the last new best."""
        self._evaluated_step, self._evaluated_ppl = -1, float("inf")
        self.loss_watch = LossWatch(log(self.model.vocab_size))
        self.stop_asked = False
        """Whether the user has interrupted the run."""
        self.wire: Mapping[str, Any] = {}
        """Bytes that all workers have sent and seconds that they have waited, by their names in
        metrics.jsonl."""

    @property
    def num_parameters(self) -> int:
        """Total number of elements of all parameters."""
        return sum(p.numel() for p in (*self.tables.values(), *self.blocks.values()))

    # Budget and rates

    def progress(self) -> float:
        """The part of the budget that is spent; also 1 if `on_event` has stopped the run."""
        return 1.0 if self.recorder.stopped_by_listener else self.budget.progress(**self._spent())

    @property
    def spent_for_certain(self) -> bool:
        """Whether the budget of tokens or epochs is spent: every worker gets the same answer."""
        return self.budget.progress(**self._spent() | {"seconds": 0.0}) >= 1.0

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `eval.patience` evaluations have found no new best."""
        return 0 < self.config.eval.patience <= self.num_worse

    @property
    def over(self) -> bool:
        """Whether training has to stop: the budget is spent, or the run is out of patience."""
        return self.out_of_patience or self.progress() >= 1.0

    @property
    def why_over(self) -> str:
        """The reason why it is over, for the record."""
        if self.recorder.stopped_by_listener:
            return "stopped by on_event"
        if self.out_of_patience and self.progress() < 1.0:
            return f"no new best in {self.num_worse} evaluations"
        return self.budget.reason(**self._spent())

    def set_rates(self, progress: float) -> None:
        """Set both optimisers' learning rates for the next step."""
        self.updater.set_rates(self.schedule.factor(self.step, progress))

    def advance(self, num_targets: int, epochs: float) -> None:
        """Count a step.

        Args:
            num_targets: tokens that the step has predicted.
            epochs: epochs that have been read after it.
        """
        self.step += 1
        self.tokens += num_targets
        self.epochs = epochs

    def take_back(self, num_targets: int) -> None:
        """Undo `advance` for the last step, because it has changed nothing."""
        self.step -= 1
        self.tokens -= num_targets

    def lose(self, num_tokens: int) -> bool:
        """Do not count the training of `num_tokens` tokens, which is lost, as spent.

        Returns:
            Whether the run will train as many more tokens. A run that is over, or one with a budget
            in seconds only, does not.
        """
        if self.over:
            return False
        before = self.progress()
        self.lost_tokens += num_tokens
        return self.progress() < before

    def observe(self, loss: float) -> None:
        """Take in the mean loss per token of the step that was counted last, in nats.

        Raises:
            UserError: the loss is not finite, or the run has diverged.
        """
        if (wrong := self.loss_watch.observe(loss, self.step)) is not None:
            raise self.diverged(wrong)
        self.averages.add(loss)

    def diverged(self, what: str) -> UserError:
        """The error for a run that has diverged: what is wrong, what was saved, what to try."""
        newest, best = (
            (self.checkpoints.newest, self.checkpoints.best) if self.checkpoints else (None, None)
        )
        return UserError(diverged_sentence(what, newest, best, self.config.optim))

    # The record

    @contextmanager
    def recording(self, *, resumed: bool) -> Iterator[None]:
        """Inside, metrics are written and progress is shown. If an error ends it, its sentence is
        the reason in the last line."""
        length = self.config.data.length
        self._due = Due(
            self.config,
            self.budget,
            self.num_workers,
            len(self.corpus.ids("train")) // length * length,
            self.tokens,
            self.clock.seconds,
        )
        self.averages = Averages(self.config.metrics, self.tokens, self.clock.seconds)
        with self.recorder.open():
            if self.folder is not None:
                self._describe(self.folder, resumed)
            self.clock.start()
            try:
                yield
            except UserError as error:
                with suppress(OSError):  # the disk may be full; the user gets the error itself
                    self._write_end(str(error))
                raise

    @property
    def report_due(self) -> bool:
        """Whether a `train` line is due."""
        return self.averages.due(self.clock.seconds)

    def evaluation_due(self) -> bool:
        """Whether an evaluation is due; true once for each interval."""
        return self._due.evaluation.due(self.tokens, self.clock.seconds)

    def save_due(self) -> bool:
        """Whether a save is due; true once for each interval."""
        return self._due.save.due(self.tokens, self.clock.seconds)

    @property
    def evaluated(self) -> bool:
        """Whether the current step has been evaluated."""
        return self._evaluated_step == self.step

    def report(self) -> None:
        """Write a `train` line about the steps since the last one, if there were any."""
        if not self.averages.steps:
            return
        found = self.averages.take(self.tokens, self.clock.seconds)
        if self.folder is None:
            return
        rate = self.updater.dense_optimizer.param_groups[0]["lr"]
        self._write("train", **found, lr=rate)
        self.recorder.display.train(
            progress=min(1.0, self.progress()),
            seconds=self.clock.seconds,
            tokens=self.tokens,
            **found,
        )

    def measure(self) -> Evaluation:
        """The exact perplexity of the model on the validation split."""
        return evaluate(
            self.model,
            self.corpus.ids("valid"),
            eos_id=self.corpus.meta.eos_id,
            unk_id=self.corpus.meta.unk_id,
            data=self.config.data,
            max_tokens=self.config.eval.tokens,
        )

    def take_evaluation(self, ppl: float, found: Evaluation | None) -> bool:
        """Record an evaluation, and adapt the schedule and the patience to it.

        Args:
            ppl: the validation perplexity of the current step.
            found: the whole evaluation, where this process has made it and records it.

        Returns:
            Whether it is better than the best step on disk. If so, `save` has to follow, with
            `best=True`.
        """
        self._evaluated_step, self._evaluated_ppl = self.step, ppl
        best = ppl < self.best_ppl
        self.num_worse = 0 if best else self.num_worse + 1
        self.schedule.observe(ppl)
        if found is not None:
            self._write(
                "valid",
                ppl=found.ppl,
                ppl_known=found.ppl_known,
                tokens_scored=found.tokens_scored,
            )
            self.recorder.warn_of_unknown(found)
            self.recorder.display.valid(
                seconds=self.clock.seconds, tokens=self.tokens, ppl=ppl, best=best
            )
        return best

    def end(self) -> None:
        """Write the last line."""
        reason = "interrupted" if self.stop_asked else self.why_over
        self._write_end(reason)
        self.recorder.say_end(
            reason,
            self.wire,
            interrupted=self.stop_asked,
            out_of_patience=self.out_of_patience,
        )

    def _write(self, event: str, **values: Any) -> None:
        """Write a line with the step, the counts, the clock and these values."""
        self.recorder.write(event, step=self.step, **self._record(), **values)

    def _write_end(self, reason: str) -> None:
        self.recorder.write("end", reason=reason, step=self.step, **self._record())

    # Checkpoints

    def save(
        self,
        carry: Mapping[str, Tensor],
        batches: Mapping[str, Any],
        *,
        best: bool = False,
        optimizer: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Save this step, if it is not saved yet.

        Args:
            carry: the state of the model that is carried over to the next batch.
            batches: the position of the readers in the text.
            best: the step has just been evaluated as the best so far. It counts as the best only
                once it is on disk.
            optimizer: returns the optimisers' state to save; None: `optimizer_state`.
        """
        best_ppl = self._evaluated_ppl if best else self.best_ppl
        if self.checkpoints is None:
            self.best_ppl = best_ppl
            return
        if self.step in self.checkpoints.steps and not best:
            return
        parameters = {**self.tables, **self.blocks}
        self.checkpoints.save(
            self.step,
            {
                "model": {name: p.detach() for name, p in parameters.items()},
                "optimizer": (optimizer or self.optimizer_state)(),
                "carry": carry,
            },
            {**self.state(), "best_ppl": _known(best_ppl), "batches": dict(batches)},
            best=best,
        )
        if best:
            self.checkpoints.wait()
            self.best_ppl = best_ppl

    def load(self) -> Checkpoint:
        """Load the newest whole step, to continue from it.

        Raises:
            UserError: there is none, all are damaged, another version of thinwire has saved it, or
                the budget was lowered below what is spent.
        """
        assert self.checkpoints is not None
        saved = self.checkpoints.load()
        # The perplexity in the newest step may be that of a best step that is damaged by now.
        best = self.checkpoints.load_best()
        best_ppl = None
        if best is not None:
            with read_from(best.path):
                best_ppl = best.state["best_ppl"]
        saved = replace(saved, state=saved.state | {"step": saved.step, "best_ppl": best_ppl})
        with read_from(saved.path):
            check_reading(saved.state["batches"])
            self.load_state(saved.state)
        self._budget_changes()
        load_parameters(self.model, saved)
        self.load_optimizer_state(saved.open("optimizer"))
        return saved

    def state(self) -> dict[str, Any]:
        """Everything that a step changes, except tensors and the position in the text, for JSON."""
        return {
            **self._record(),
            "step": self.step,
            "lost_tokens": self.lost_tokens,
            "epochs": self.epochs,
            "schedule": self.schedule.state_dict(),
            "best_ppl": _known(self.best_ppl),
            "num_worse": self.num_worse,
            "smoothed_loss": self.loss_watch.smoothed,
            "lowest_loss": self.loss_watch.lowest,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.step, self.tokens, self.epochs = state["step"], state["tokens"], state["epochs"]
        self.lost_tokens = int(state.get("lost_tokens", 0))  # steps of older versions have none
        self.clock = Clock(state["seconds"], state["wall_seconds"])
        self.schedule.load_state_dict(state["schedule"])
        self.best_ppl = float("inf") if state["best_ppl"] is None else state["best_ppl"]
        self.num_worse = state["num_worse"]
        self.loss_watch.smoothed, self.loss_watch.lowest = (
            state["smoothed_loss"],
            state["lowest_loss"],
        )

    def optimizer_state(self) -> dict[str, Tensor]:
        """The state of both optimisers, by name."""
        rows = named_state(self.updater.row_optimizer, _names(self.tables))
        blocks = named_state(self.updater.dense_optimizer, _names(self.blocks))
        return {
            **{f"rows.{name}": tensor for name, tensor in rows.items()},
            **{f"blocks.{name}": tensor for name, tensor in blocks.items()},
        }

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `optimizer_state` returned."""
        updater = self.updater
        load_named_state(updater.row_optimizer, _names(self.tables), _part(state, "rows."))
        load_named_state(updater.dense_optimizer, _names(self.blocks), _part(state, "blocks."))

    def _spent(self) -> dict[str, Any]:
        tokens_an_epoch = max(1, len(self.corpus.ids("train")))
        return {
            "seconds": self.clock.seconds,
            "tokens": self.tokens - self.lost_tokens,
            "epochs": self.epochs - self.lost_tokens / tokens_an_epoch,
        }

    def _record(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "seconds": round(self.clock.seconds, 3),
            "wall_seconds": round(self.clock.wall_seconds, 3),
            **self.wire,
        }

    def _budget_changes(self) -> list[str]:
        """A sentence for each limit of the budget that was changed when the run was resumed."""
        if self.folder is None or self.folder.budget_before is None:
            return []
        before, now = self.folder.budget_before, self.config.run
        return budget_sentences(before, now, self._spent(), self.folder.path)

    def _describe(self, folder: RunFolder, resumed: bool) -> None:
        """Write the first lines of the record, and say what is trained."""
        note = self.recorder.display.note
        if resumed:
            self._write("resume")
            saved = self.checkpoints is not None and self.checkpoints.newest is not None
            for sentence in resume_sentences(
                folder.path,
                self.step if saved else None,
                is_spent=self.progress() >= 1.0,
                stopped_early=self.why_over if self.out_of_patience else None,
            ):
                note(sentence)
            for change in self._budget_changes():
                note(change)
        about = self.config, self.device, self.num_workers, self.num_parameters
        start = start_values(*about, folder.fingerprint)
        self.recorder.write("start", step=self.step, **start)
        num_dense = sum(p.numel() for p in self.blocks.values())
        words = self.corpus.meta.vocab_size
        note(summary(*about, num_dense, words, self.budget.limits))


def _known(ppl: float) -> float | None:
    """A perplexity for JSON, which has no infinity."""
    return ppl if isfinite(ppl) else None


def _names(parameters: Mapping[str, torch.nn.Parameter]) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in parameters.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
