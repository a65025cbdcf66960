"""What a run keeps and records: the model and its optimisers, the counts, the clock, the files.

Whoever drives it, the loop of a worker or a server of an asynchronous run, counts steps, and has it
report, evaluate and save when that is due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from math import isfinite, log
from typing import Any

import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus, unknown_sentence
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.optim.schedules import Schedule
from thinwire.optim.state import load_named_state, named_state
from thinwire.optim.updater import Updater
from thinwire.runs.budget_change import budget_sentences
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.clock import Budget, Clock
from thinwire.runs.due import Due
from thinwire.runs.evaluation import Evaluation, evaluate
from thinwire.runs.folder import RunFolder, load_parameters
from thinwire.runs.metrics import Averages, MetricsWriter, OnEvent
from thinwire.runs.opening import start_values, summary
from thinwire.runs.progress import TrainingDisplay, wire_sentence
from thinwire.runs.reading import check_reading, read_from
from thinwire.runs.step_folder import Checkpoint

# A smoothed loss so far above its lowest value will not come back; 2 nats are a factor of 7 in
# perplexity.
EXPLODED_NATS = 2.0
SMOOTHING_STEPS = 100


class Run:
    """A model in training, its budget and its record.

    Args:
        folder: where the record goes; None: another process keeps it (all workers but the first).
        config: all settings.
        corpus: the data folder.
        device: where the model lives.
        num_workers: workers that train it.
        on_event: hears of what is recorded, and may stop the run.
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
        self.num_workers, self._on_event = num_workers, on_event
        counts_V = torch.from_numpy(corpus.counts_V)
        in_bf16 = config.run.precision == "bf16"
        model = LanguageModel(config.model, config.loss, counts_V, config.run.seed, in_bf16=in_bf16)
        self.model = model.to(device)
        self.tables, self.blocks = self.model.tables(), self.model.blocks()
        self.updater = Updater.of(self.tables, self.blocks, config.optim)
        # Where nobody waits for the others, each worker's step counts.
        round_steps = num_workers if config.exchange.kind == "async" else 1
        self.schedule = Schedule(config.optim, round_steps)
        self.budget = Budget(config.run)
        self.clock = Clock()
        self.checkpoints = (
            Checkpoints(folder.path, config.checkpoint.keep) if folder is not None else None
        )
        self.step = 0
        self.tokens = 0
        self.epochs = 0.0
        self.best_ppl = float("inf")
        """Of the best step that has been saved."""
        self.num_worse = 0
        """Evaluations since the last new best."""
        self._evaluated_step, self._evaluated_ppl = -1, float("inf")
        self.smoothed_loss = log(self.model.vocab_size)
        self.lowest_loss = self.smoothed_loss
        self.stop_asked = self._said_unknown = False
        self._stopped_by_listener = False
        self.wire: Mapping[str, Any] = {}
        """What all workers together have sent and waited, by the names in metrics.jsonl."""

    @property
    def num_parameters(self) -> int:
        """Numbers in all parameters."""
        return sum(p.numel() for p in (*self.tables.values(), *self.blocks.values()))

    # Budget and rates

    def progress(self) -> float:
        """The part of the budget that is spent; 1 too where `on_event` has stopped the run."""
        return 1.0 if self._stopped_by_listener else self.budget.progress(**self._spent())

    @property
    def spent_for_certain(self) -> bool:
        """Whether tokens or epochs have spent the budget, which every worker counts alike."""
        return self.budget.progress(**self._spent() | {"seconds": 0.0}) >= 1.0

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `eval.patience` evaluations have found no new best."""
        return 0 < self.config.eval.patience <= self.num_worse

    @property
    def over(self) -> bool:
        """Whether training has to stop: its budget is spent, or it no longer gets better."""
        return self.out_of_patience or self.progress() >= 1.0

    @property
    def why_over(self) -> str:
        """The reason, for the record."""
        if self._stopped_by_listener:
            return "stopped by on_event"
        if self.out_of_patience and self.progress() < 1.0:
            return f"no new best in {self.num_worse} evaluations"
        return self.budget.reason(**self._spent())

    def set_rates(self, progress: float) -> None:
        """Set both optimisers' learning rates for the next step."""
        self.updater.set_rates(self.schedule.factor(self.step, progress))

    def advance(self, num_targets: int, epochs: float) -> None:
        """Count a step over so many targets, after which so many epochs are read."""
        self.step += 1
        self.tokens += num_targets
        self.epochs = epochs

    def take_back(self, num_targets: int) -> None:
        """Uncount the step that was counted last: it has changed nothing."""
        self.step -= 1
        self.tokens -= num_targets

    def observe(self, loss: float) -> None:
        """Take in the mean loss a token of the step that was counted last, in nats.

        Raises:
            UserError: it is not finite, or the smoothed loss has risen beyond hope.
        """
        if not isfinite(loss):
            raise self.diverged(f"the loss is {loss} at step {self.step}")
        self.averages.add(loss)
        self.smoothed_loss += (loss - self.smoothed_loss) / SMOOTHING_STEPS
        self.lowest_loss = min(self.lowest_loss, self.smoothed_loss)
        if self.smoothed_loss > self.lowest_loss + EXPLODED_NATS:
            raise self.diverged(
                f"the loss has risen from {self.lowest_loss:.2f} to {self.smoothed_loss:.2f} nats "
                f"a token by step {self.step}"
            )

    def diverged(self, what: str) -> UserError:
        """The sentence about a run that has gone wrong, with what was saved and what to try."""
        newest, best = (
            (self.checkpoints.newest, self.checkpoints.best) if self.checkpoints else (None, None)
        )
        kept = "no step had been saved yet"
        if newest is not None:
            kept = f"the newest state saved is step {newest}"
            kept += f", the best step {best}" if best not in (None, newest) else ""
        optim = self.config.optim
        lr, row_lr = optim.rates
        return UserError(
            f"{what}, so training has stopped; {kept}. Try a lower --optim.lr (now {lr:g}) "
            f"or --optim.row_lr (now {row_lr:g}), more --optim.warmup_steps (now "
            f"{optim.warmup_steps}) or a tighter --optim.clip (now {optim.clip:g})"
        )

    # The record

    @contextmanager
    def recording(self, *, resumed: bool) -> Iterator[None]:
        """Inside, metrics are written and progress is shown; why it ended is recorded after."""
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
        if self.folder is None:
            self.clock.start()
            yield
            return
        metrics = MetricsWriter(self.folder.path, tensorboard=self.config.metrics.tensorboard)
        self._metrics = metrics
        with closing(metrics), TrainingDisplay() as self._display:
            self._describe(resumed)
            self.clock.start()
            try:
                yield
            except UserError as error:
                with suppress(OSError):  # on a full disk: what has gone wrong is said already
                    self._write("end", reason=str(error), step=self.step, **self._record())
                raise

    @property
    def report_due(self) -> bool:
        """Whether it is time for a `train` line."""
        return self.averages.due(self.clock.seconds)

    def evaluation_due(self) -> bool:
        """Whether it is time to evaluate; true once each time."""
        return self._due.evaluation.due(self.tokens, self.clock.seconds)

    def save_due(self) -> bool:
        """Whether it is time to save; true once each time."""
        return self._due.save.due(self.tokens, self.clock.seconds)

    @property
    def evaluated(self) -> bool:
        """Whether the present step has been evaluated."""
        return self._evaluated_step == self.step

    def report(self) -> None:
        """Write a `train` line about the steps since the last one, if there were any."""
        if not self.averages.steps:
            return
        found = self.averages.take(self.tokens, self.clock.seconds)
        if self.folder is None:
            return
        rate = self.updater.dense_optimizer.param_groups[0]["lr"]
        self._write("train", step=self.step, **self._record(), **found, lr=rate)
        self._display.train(
            progress=min(1.0, self.progress()),
            seconds=self.clock.seconds,
            tokens=self.tokens,
            **found,
        )

    def measure(self) -> Evaluation:
        """The exact perplexity of the model as it stands."""
        return evaluate(
            self.model,
            self.corpus.ids("valid"),
            eos_id=self.corpus.meta.eos_id,
            unk_id=self.corpus.meta.unk_id,
            data=self.config.data,
            max_tokens=self.config.eval.tokens,
        )

    def take_evaluation(self, ppl: float, found: Evaluation | None) -> bool:
        """Record an evaluation, steer by it, and say whether it is the best so far.

        The best so far is that of the best step on disk: `save` has to follow, with `best`.
        """
        self._evaluated_step, self._evaluated_ppl = self.step, ppl
        best = ppl < self.best_ppl
        self.num_worse = 0 if best else self.num_worse + 1
        self.schedule.observe(ppl)
        if found is not None:
            self._write(
                "valid",
                step=self.step,
                **self._record(),
                ppl=found.ppl,
                ppl_known=found.ppl_known,
                tokens_scored=found.tokens_scored,
            )
            seconds = self.clock.seconds
            sentence = unknown_sentence(
                "the validation text", found.tokens_unknown, found.tokens_scored
            )
            if sentence and not self._said_unknown:  # once a run
                self._said_unknown = True
                self._display.note(f"Warning: {sentence}")
            self._display.valid(seconds=seconds, tokens=self.tokens, ppl=ppl, best=best)
        return best

    def end(self) -> None:
        """Write the last line."""
        reason = "interrupted" if self.stop_asked else self.why_over
        if self.folder is None:
            return
        self._write("end", reason=reason, step=self.step, **self._record())
        if self.wire.get("bytes_dense"):
            self._display.note(wire_sentence(self.wire))
        path = self.folder.path
        if self.stop_asked:
            self._display.note(f"{path} has what was trained; the command with --resume goes on.")
        else:
            if self.out_of_patience or self._stopped_by_listener:
                self._display.note(f"Stopped early: {reason}.")
            self._display.note(f"The model is in {path}; thinwire eval {path} scores it.")

    def _write(self, event: str, **values: Any) -> None:
        line = self._metrics.write(event, **values)
        if self._on_event is not None and self._on_event(line) is False:
            self._stopped_by_listener = True

    # Checkpoints

    def save(
        self,
        carry: Mapping[str, Tensor],
        batches: Mapping[str, Any],
        *,
        best: bool = False,
        optimizer: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Save this step, if it is not saved yet: `carry` and `batches` say where readers stand.

        `optimizer` gives the optimisers' state to save where it is not as `optimizer_state` has it.

        With `best`, the step that has just been evaluated is the best so far from when it is on
        disk, and no earlier.
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
        """Go on from the newest whole step.

        Raises:
            UserError: there is none, it is damaged, another version has saved it, or the budget is
                smaller than before and than what is spent.
        """
        assert self.checkpoints is not None
        saved = self.checkpoints.load()
        # The best step on disk decides, whatever the newest one was told of it.
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
        """All that a step changes but tensors and readers, for JSON."""
        return {
            **self._record(),
            "step": self.step,
            "epochs": self.epochs,
            "schedule": self.schedule.state_dict(),
            "best_ppl": _known(self.best_ppl),
            "num_worse": self.num_worse,
            "smoothed_loss": self.smoothed_loss,
            "lowest_loss": self.lowest_loss,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.step, self.tokens, self.epochs = state["step"], state["tokens"], state["epochs"]
        self.clock = Clock(state["seconds"], state["wall_seconds"])
        self.schedule.load_state_dict(state["schedule"])
        self.best_ppl = float("inf") if state["best_ppl"] is None else state["best_ppl"]
        self.num_worse = state["num_worse"]
        self.smoothed_loss, self.lowest_loss = state["smoothed_loss"], state["lowest_loss"]

    def optimizer_state(self) -> dict[str, Tensor]:
        """Both optimisers' state, by name."""
        rows = named_state(self.updater.row_optimizer, _names(self.tables))
        blocks = named_state(self.updater.dense_optimizer, _names(self.blocks))
        return {
            **{f"rows.{name}": tensor for name, tensor in rows.items()},
            **{f"blocks.{name}": tensor for name, tensor in blocks.items()},
        }

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `optimizer_state` returned."""
        updater = self.updater
        load_named_state(updater.row_optimizer, _names(self.tables), _part(state, "rows."))
        load_named_state(updater.dense_optimizer, _names(self.blocks), _part(state, "blocks."))

    def _spent(self) -> dict[str, Any]:
        return {"seconds": self.clock.seconds, "tokens": self.tokens, "epochs": self.epochs}

    def _record(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "seconds": round(self.clock.seconds, 3),
            "wall_seconds": round(self.clock.wall_seconds, 3),
            **self.wire,
        }

    def _budget_changes(self) -> list[str]:
        """Of a run that is resumed."""
        if self.folder is None or self.folder.budget_before is None:
            return []
        before, now = self.folder.budget_before, self.config.run
        return budget_sentences(before, now, self._spent(), self.folder.path)

    def _describe(self, resumed: bool) -> None:
        assert self.folder is not None
        if resumed:
            self._write("resume", step=self.step, **self._record())
            saved = self.checkpoints is not None and self.checkpoints.newest is not None
            place = f"step {self.step}" if saved else "the start, as no step was saved"
            self._display.note(f"Going on from {place}, in {self.folder.path}")
            if self.progress() >= 1.0:
                self._display.note(
                    "Its budget is spent: a larger --seconds, --tokens or --epochs trains it on."
                )
            elif self.out_of_patience:
                self._display.note(
                    f"It has stopped early, with {self.why_over}: a larger --eval.patience, or 0, "
                    "trains it on."
                )
            for change in self._budget_changes():
                self._display.note(change)
        about = self.config, self.device, self.num_workers, self.num_parameters
        start = start_values(*about, self.folder.fingerprint)
        self._write("start", step=self.step, **start)
        num_dense = sum(p.numel() for p in self.blocks.values())
        words = self.corpus.meta.vocab_size
        self._display.note(summary(*about, num_dense, words, self.budget.limits))


def _known(ppl: float) -> float | None:
    """A perplexity for JSON, which has no infinity."""
    return ppl if isfinite(ppl) else None


def _names(parameters: Mapping[str, torch.nn.Parameter]) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in parameters.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
