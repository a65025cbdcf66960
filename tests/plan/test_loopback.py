"""What is timed is an exchange as the counts know it."""

from __future__ import annotations

from typing import Any

import pytest

from thinwire.exchange.config import CodecName
from thinwire.exchange.sizes import TouchedTables, sync_bytes, total_bytes
from thinwire.plan import loopback
from thinwire.plan.loopback import BLOCK_SHAPE, NUM_ROWS, WIDTH, exchange_seconds
from thinwire.plan.traffic import sync_rounds
from thinwire.training.agreement import STATUS_NUMBERS
from thinwire.transport.c10d import loopback_group


@pytest.mark.parametrize("codec", ["fp32", "int4"])
def test_as_many_rounds_and_bytes_as_counted(
    monkeypatch: pytest.MonkeyPatch, swaps: list[int], codec: CodecName
) -> None:
    monkeypatch.setattr(loopback, "mean_seconds", lambda *_: 2.0)
    members = loopback_group(2)
    seconds, num_bytes = loopback._exchange(members, codec, NUM_ROWS, BLOCK_SHAPE)
    for member in members:
        member.close()
    assert seconds == 1.0
    assert swaps.count(0) == swaps.count(1) == sync_rounds(num_sums=2, num_gathers=2)
    tables = [
        TouchedTables([(WIDTH,)], 3 * NUM_ROWS, NUM_ROWS, 1, NUM_ROWS),
        TouchedTables([(WIDTH,)], 3 * NUM_ROWS, NUM_ROWS, 1),
    ]
    sent = sync_bytes(2, codec, tables, [BLOCK_SHAPE]) + total_bytes(2, STATUS_NUMBERS)
    assert num_bytes == pytest.approx(2 * sent, rel=1e-3)


def test_what_a_byte_adds_to_the_least_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"fp32": 0.109, "bf16": 0.059, "int8": 0.034, "int4": 0.008}

    def timed(_: Any, codec: str, num_rows: int, *__: Any) -> tuple[float, int]:
        return (0.009, 100) if num_rows == 1 else (seconds[codec], 1_000_000)

    monkeypatch.setattr(loopback, "_exchange", timed)
    a_round, byte = exchange_seconds()
    # Nine rounds, and a million bytes; what came out below the least is still something.
    assert a_round == pytest.approx(0.001)
    assert byte == pytest.approx({"fp32": 1e-7, "bf16": 5e-8, "int8": 2.5e-8, "int4": 8e-10})
