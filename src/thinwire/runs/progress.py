"""Shows the progress of a run: one updated line on a terminal, or a few lines in a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.text import Text

from thinwire.console import LiveLine, console, print_line

CURVE_WIDTH = 24
# Without a terminal, print this many lines, at equal parts of the budget.
LOG_LINES = 10
BARS = "▁▂▃▄▅▆▇█"


class TrainingDisplay:
    """Speed, loss, validation perplexity, time left and a small curve of the loss."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._ppl: float | None = None
        self._part = 0
        self._live = LiveLine(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> TrainingDisplay:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def train(
        self, *, progress: float, seconds: float, tokens: int, loss: float, tokens_per_second: float
    ) -> None:
        """Show the state of the training; `progress` is the part of the budget that is spent."""
        self._losses.append(loss)
        if not console.is_terminal:
            part = int(progress * LOG_LINES)
            if self._part < part < LOG_LINES:
                self.note(
                    f"{_clock(seconds)}  {tokens / 1e6:8.2f} M tokens  loss {loss:.3f}  "
                    f"{tokens_per_second:,.0f} tokens/s"
                )
            self._part = part
            return
        left = seconds / progress * (1.0 - progress) if progress > 0 else 0.0
        parts = [
            (Text(f"{progress:4.0%}", "bold"), 0),
            (Text(f"{tokens / 1e6:.2f} M tokens"), 4),
            (Text(f"{tokens_per_second:,.0f} tokens/s"), 3),
            (Text(f"loss {loss:.3f}"), 2),
            (Text(_curve(self._losses), "green"), 6),
            *([(Text(f"validation ppl {self._ppl:.1f}"), 5)] if self._ppl else []),
            (Text(f"{_clock(left)} left"), 1),
        ]
        self._live.update(fitted(parts, console.width))

    def valid(self, *, seconds: float, tokens: int, ppl: float, best: bool) -> None:
        """Print a line with the result of a validation."""
        self._ppl = ppl
        console.print(
            Text.assemble(
                f"{_clock(seconds)}  {tokens / 1e6:8.2f} M tokens  validation perplexity ",
                (f"{ppl:.2f}", "bold"),
                "  best so far" if best else "",
            ),
            soft_wrap=True,
        )

    def note(self, sentence: str) -> None:
        """Print a sentence above the updated line."""
        print_line(sentence)


def fitted(parts: Sequence[tuple[Text, int]], width: int) -> Text:
    """Join the parts to one line, and leave out parts until it fits.

    Args:
        parts: the parts, each with its rank: the part with the highest rank is left out first.
        width: width of the terminal in characters.
    """
    kept = list(parts)
    while len(kept) > 1 and sum(part.cell_len + 2 for part, _ in kept) - 2 > width:
        kept.remove(max(kept, key=lambda part: part[1]))
    line = Text("  ", no_wrap=True, overflow="crop").join(part for part, _ in kept)
    line.no_wrap, line.overflow = True, "crop"
    return line


def wire_sentence(wire: Mapping[str, float]) -> str:
    """How much a run has sent, and during which part of the sending its workers were computing.

    Args:
        wire: the values in metrics.jsonl; `bytes_sent` and `bytes_dense` are above 0.
    """
    sent, dense = wire["bytes_sent"], wire["bytes_dense"]
    said = f"{sent / 1e6:,.1f} MB were sent, {sent / dense:.1%} of what all parameters would be"
    under_way = wire.get("wire_seconds", 0.0)
    if not under_way:
        return f"{said}."
    hidden = max(0.0, 1.0 - wire["exchange_seconds"] / under_way)
    return f"{said}; {hidden:.0%} of the wire's time was hidden behind arithmetic."


def _curve(values: list[float]) -> str:
    """The values as bars; the highest value is a full bar, the lowest an empty one."""
    if len(values) > CURVE_WIDTH:  # the whole run, each bar a mean
        size = len(values) / CURVE_WIDTH
        parts = [values[int(i * size) : int((i + 1) * size)] for i in range(CURVE_WIDTH)]
        values = [sum(part) / len(part) for part in parts]
    low, high = min(values), max(values)
    spread = high - low or 1.0
    return "".join(BARS[round((value - low) / spread * (len(BARS) - 1))] for value in values)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"
