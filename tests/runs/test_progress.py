"""What people see: numbers that are those given, on a terminal and in a log."""

from __future__ import annotations

from io import StringIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from thinwire import console as terminal
from thinwire.runs import progress as module
from thinwire.runs.progress import (
    BARS,
    CURVE_WIDTH,
    TrainingDisplay,
    _clock,
    _curve,
    wire_sentence,
)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
@example([0.0, 2.2250738585072014e-308])
def test_a_curve_is_as_long_as_it_may_be_and_spans_all_bars(values: list[float]) -> None:
    curve = _curve(values)
    assert len(curve) == min(len(values), CURVE_WIDTH)
    assert set(curve) <= set(BARS) and BARS[0] in curve
    assert len(set(curve)) == 1 or BARS[-1] in curve


def test_a_falling_loss_falls() -> None:
    curve = _curve([5.0 - i / 50 for i in range(100)])
    assert list(curve) == sorted(curve, reverse=True)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "00:00"), (59.6, "01:00"), (61, "01:01"), (3600, "1:00:00")]
)
def test_times(seconds: float, shown: str) -> None:
    assert _clock(seconds) == shown


def test_on_a_terminal_one_line_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    show_on(
        monkeypatch,
        Console(file=screen, markup=False, highlight=False, force_terminal=True, width=140),
    )
    with TrainingDisplay() as display:
        display.note("in [brackets]")
        for step in range(1, 40):
            display.train(
                progress=step / 40,
                seconds=step,
                tokens=step * 100_000,
                loss=9 / step,
                tokens_per_second=123_456.7,
            )
        display.valid(seconds=39, tokens=3_900_000, ppl=98.7654, best=True)
    shown = screen.getvalue()
    for part in ("in [brackets]", "123,457 tokens/s", "3.90 M tokens", "loss 0.231", "98.77"):
        assert part in shown
    assert "98%" in shown and "00:01 left" in shown


def test_in_a_log_lines_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    log = StringIO()
    show_on(monkeypatch, Console(file=log, width=80))
    with TrainingDisplay() as display:
        display.note("word " * 40)
        display.train(progress=0.05, seconds=1, tokens=1, loss=1.0, tokens_per_second=1.0)
        display.valid(seconds=1, tokens=1, ppl=2.0, best=False)
    assert log.getvalue().count("\n") == 2 and "\x1b" not in log.getvalue()


def test_a_log_has_a_line_for_every_tenth_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    log = StringIO()
    show_on(monkeypatch, Console(file=log, width=80))
    with TrainingDisplay() as display:
        for step in range(1, 201):
            display.train(
                progress=step / 200,
                seconds=step,
                tokens=step * 10_000,
                loss=200 / step,
                tokens_per_second=2345.6,
            )
    lines = log.getvalue().splitlines()
    # The last tenth ends with the run, which says so itself.
    assert len(lines) == 9
    assert lines[0] == "00:20      0.20 M tokens  loss 10.000  2,346 tokens/s"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ({}, "."),
        (
            {"exchange_seconds": 1.0, "wire_seconds": 4.0},
            "; 75% of the wire's time was hidden behind arithmetic.",
        ),
        (
            {"exchange_seconds": 5.0, "wire_seconds": 4.0},
            "; 0% of the wire's time was hidden behind arithmetic.",
        ),
    ],
)
def test_the_account_of_the_wire_in_words(seconds: dict[str, float], said: str) -> None:
    wire = {"bytes_sent": 2_500_000, "bytes_dense": 50_000_000, **seconds}
    assert wire_sentence(wire) == f"2.5 MB were sent, 5.0% of what all parameters would be{said}"


def show_on(monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    for shown_by in (module, terminal):
        monkeypatch.setattr(shown_by, "console", console)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_line_that_moves_stays_one_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    monkeypatch.setattr(
        module, "console", Console(file=screen, force_terminal=True, width=width, markup=False)
    )
    display = TrainingDisplay()
    shown: list[str] = []
    monkeypatch.setattr(display._live, "update", lambda line: shown.append(line.plain))
    display.valid(seconds=1, tokens=1, ppl=123456.7, best=True)
    for step in range(1, 40):
        display.train(
            progress=step / 40,
            seconds=1000 * step,
            tokens=step * 100_000_000,
            loss=9.0,
            tokens_per_second=123_456.7,
        )
    assert max(len(line) for line in shown) <= width
    assert all("%" in line and "left" in line and "[" not in line for line in shown)
    assert ("validation ppl 123456.7" in shown[-1]) == (width == 200)


def test_brackets_in_names_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    monkeypatch.setattr(terminal.console, "_file", screen)
    with terminal.progress_bar() as progress:
        progress.add_task("[bold]corpus[/bold].txt", total=1)
        terminal.console.print("[red]a.txt is held out")
    assert "[red]a.txt is held out" in screen.getvalue()
    assert "[bold]corpus[/bold].txt" in screen.getvalue()
