"""Ctrl+C, SIGTERM and SIGHUP stop a run alike; a terminal that hangs up does so several times."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.signals import handled, hang_up, stop_on_signals
from thinwire.training.loop import Trainer, train


class Run:
    stop_asked = False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_one_does_not_wait(number: signal.Signals) -> None:
    run = Run()
    with stop_on_signals(run):
        signal.raise_signal(number)
        assert run.stop_asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_hangup_never_ends_a_run_at_once() -> None:
    run = Run()
    with stop_on_signals(run):
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
        assert run.stop_asked
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert handled() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in handled()


def test_a_hangup_silences_terminals_only() -> None:
    lead, terminal = os.openpty()
    kept = os.dup(2)
    try:
        os.dup2(terminal, 2)
        hang_up()
        assert not os.isatty(2) and os.write(2, b"thrown away") == 11
    finally:
        os.dup2(kept, 2)
        for descriptor in (lead, terminal, kept):
            os.close(descriptor)


def test_a_hangup_saves(
    toy_data: Path, tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def hung_up(self: Trainer):
        if self.run.step == 2:
            signal.raise_signal(signal.SIGHUP)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", hung_up)
    with pytest.raises(KeyboardInterrupt):
        train(toy_data, tmp_path / "run", tiny(run={"tokens": 10**6}))
    assert Checkpoints(tmp_path / "run").newest == 3
    assert not (tmp_path / "run" / "lock").exists()
