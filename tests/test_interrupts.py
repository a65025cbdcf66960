from __future__ import annotations

import signal

import pytest

from thinwire.interrupts import interrupt_later


def test_an_interrupt_comes_after_what_must_not_be_cut_short() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt_later():
        for number in range(3):
            signal.raise_signal(signal.SIGINT)
            done.append(number)
    assert done == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
