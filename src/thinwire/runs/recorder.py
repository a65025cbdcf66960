"""Records a run: writes metrics.jsonl, calls `on_event`, and shows the progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from thinwire.config import MetricsSettings
from thinwire.data.corpus import unknown_sentence
from thinwire.runs.evaluation import Evaluation
from thinwire.runs.metrics import MetricsWriter, OnEvent
from thinwire.runs.progress import TrainingDisplay, wire_sentence


class Recorder:
    """Writes one line for each event of a run, and shows its progress.

    Args:
        path: the run folder; None: another process keeps the record, and nothing is written here.
        settings: whether TensorBoard gets the numbers too.
        on_event: called with each line; it stops the run by returning False.
    """

    def __init__(
        self, path: Path | None, settings: MetricsSettings, on_event: OnEvent | None
    ) -> None:
        self._path, self._settings, self._on_event = path, settings, on_event
        self._metrics: MetricsWriter | None = None
        self._display: TrainingDisplay | None = None
        self._said_unknown = False
        self.stopped_by_listener = False
        """Whether `on_event` has returned False."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside, lines are written and progress is shown."""
        if self._path is None:
            yield
            return
        metrics = MetricsWriter(self._path, tensorboard=self._settings.tensorboard)
        with closing(metrics), TrainingDisplay() as display:
            self._metrics, self._display = metrics, display
            yield

    @property
    def display(self) -> TrainingDisplay:
        """The display of the progress, which exists while the record is open."""
        assert self._display is not None, "the record is not open"
        return self._display

    def write(self, event: str, **values: Any) -> None:
        """Write a line, and hand it to `on_event`; without a run folder, do nothing."""
        if self._path is None:
            return
        assert self._metrics is not None, "the record is not open"
        line = self._metrics.write(event, **values)
        if self._on_event is not None and self._on_event(line) is False:
            self.stopped_by_listener = True

    def warn_of_unknown(self, found: Evaluation) -> None:
        """Warn, once in a run, if many words of the validation text are unknown."""
        sentence = unknown_sentence(
            "the validation text", found.tokens_unknown, found.tokens_scored
        )
        if sentence and not self._said_unknown:
            self._said_unknown = True
            self.display.note(f"Warning: {sentence}")

    def say_end(
        self, reason: str, wire: Mapping[str, Any], *, interrupted: bool, out_of_patience: bool
    ) -> None:
        """Say what the workers have sent, and what the run folder has now.

        Args:
            reason: why the run has ended.
            wire: bytes sent and seconds waited by all workers; see `Run.wire`.
            interrupted: whether the user has stopped the run, so that it can be resumed.
            out_of_patience: whether it ended because evaluations found no new best.
        """
        if self._path is None:
            return
        if wire.get("bytes_dense"):
            self.display.note(wire_sentence(wire))
        if interrupted:
            self.display.note(
                f"{self._path} has what was trained; the command with --resume goes on."
            )
            return
        if out_of_patience or self.stopped_by_listener:
            self.display.note(f"Stopped early: {reason}.")
        self.display.note(f"The model is in {self._path}; thinwire eval {self._path} scores it.")
