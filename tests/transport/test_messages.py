"""Messages in one process: every byte is counted, and faults are what they are called."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor

from thinwire.transport.messages import (
    Fault,
    InProcessConnection,
    InProcessListener,
    UnreliableConnection,
)


def message(number: int) -> Tensor:
    return torch.full((number + 1,), number, dtype=torch.uint8)


def received(listener: InProcessListener) -> list[int]:
    """What has come to the listener, by the first byte of each message."""
    found = []
    while (arrived := listener.receive(0.0)) is not None:
        found.append(int(arrived[1][0]))
    return found


def test_each_client_is_answered_on_its_own_line() -> None:
    listener = InProcessListener()
    connections = [listener.connection(), listener.connection()]
    for number, connection in enumerate(connections):
        connection.send(message(number))
    for _ in connections:
        arrived = listener.receive(0.0)
        assert arrived is not None
        client, text = arrived
        listener.send(client, message(int(text[0]) + 10))
    for number, connection in enumerate(connections):
        answer = connection.receive(0.0)
        assert answer is not None and answer.tolist() == [number + 10] * (number + 11)
        assert connection.receive(0.0) is None


def test_every_byte_is_counted_once_at_either_end() -> None:
    listener = InProcessListener()
    connection = listener.connection()
    for number in (0, 4, 9):
        connection.send(message(number))
    assert (connection.meter.sent, listener.meter.received) == (16, 0)
    client = b""
    while (arrived := listener.receive(0.0)) is not None:
        client = arrived[0]
    assert listener.meter.received == 16
    listener.send(client, message(6))
    assert (listener.meter.sent, connection.meter.received) == (7, 0)
    assert connection.receive(0.0) is not None
    assert connection.meter.received == 7


def test_a_line_lets_the_door_work_when_it_waits() -> None:
    listener = InProcessListener()
    connection = listener.connection()
    steps = iter([True, True, False])

    def serve() -> bool:
        more = next(steps)
        if not more:
            return False
        if (arrived := listener.receive(0.0)) is not None:
            listener.send(arrived[0], arrived[1])
        return True

    listener.serve = serve
    connection.send(message(3))
    assert connection.receive(60.0) is not None
    assert connection.receive(60.0) is None


def test_threads() -> None:
    listener = InProcessListener()
    connections = [listener.connection() for _ in range(4)]

    def ask(connection: InProcessConnection, number: int) -> None:
        for _ in range(20):
            connection.send(message(number))
            answer = connection.receive(30.0)
            assert answer is not None and int(answer[0]) == number

    clients = [Thread(target=ask, args=pair) for pair in zip(connections, range(4), strict=True)]
    for client in clients:
        client.start()
    for _ in range(80):
        arrived = listener.receive(30.0)
        assert arrived is not None
        listener.send(*arrived)
    for client in clients:
        client.join()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("lost", [0, 2]),
        ("twice", [0, 1, 1, 2]),
        ("late", [0, 2, 1]),
        ("spoilt", [0, 0, 2]),  # the first byte of message 1 is 1, and has its last bit changed
    ],
)
def test_faults(fault: Fault, expected: list[int]) -> None:
    listener = InProcessListener()
    connection = UnreliableConnection(listener.connection(), sending={1: fault})
    for number in range(3):
        connection.send(message(number))
    assert received(listener) == expected

    listener = InProcessListener()
    connection = UnreliableConnection(listener.connection(), receiving={1: fault})
    connection.send(message(0))
    arrived = listener.receive(0.0)
    assert arrived is not None
    for number in range(3):
        listener.send(arrived[0], message(number))
    found = [connection.receive(0.0) for _ in range(5)]
    assert [int(answer[0]) for answer in found if answer is not None] == expected
