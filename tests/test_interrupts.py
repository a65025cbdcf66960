from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from thinwire.interrupts import interrupt_blocked, interrupt_kept, interrupt_later


def test_an_interrupt_comes_after_what_must_not_be_cut_short() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt_later():
        for number in range(3):
            signal.raise_signal(signal.SIGINT)
            done.append(number)
    assert done == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_that_native_code_makes_of_an_interrupt_is_one() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, interrupt_kept():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match="its own"), interrupt_kept():
        raise ValueError("its own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt_kept():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_processes_that_are_started_do_not_get_an_interrupt() -> None:
    code = "import signal; signal.raise_signal(signal.SIGINT); print('here')"
    with interrupt_blocked():
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.communicate(timeout=60)[0] == "here\n" and child.returncode == 0
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt_blocked():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest")
    assert done == ["the rest"]
