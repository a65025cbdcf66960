from __future__ import annotations

import signal

import pytest

from thinwire.interrupts import interrupt_kept, interrupt_later


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
