"""Messages in one process: every byte is counted, and faults are what they are called."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor

from thinwire.transport.messages import Fate, InProcessDoor, InProcessLine, UnreliableLine


def message(number: int) -> Tensor:
    return torch.full((number + 1,), number, dtype=torch.uint8)


def received(door: InProcessDoor) -> list[int]:
    """What has come to the door, by the first byte of each message."""
    found = []
    while (arrived := door.receive(0.0)) is not None:
        found.append(int(arrived[1][0]))
    return found


def test_each_client_is_answered_on_its_own_line() -> None:
    door = InProcessDoor()
    lines = [door.line(), door.line()]
    for number, line in enumerate(lines):
        line.send(message(number))
    for _ in lines:
        arrived = door.receive(0.0)
        assert arrived is not None
        client, text = arrived
        door.send(client, message(int(text[0]) + 10))
    for number, line in enumerate(lines):
        answer = line.receive(0.0)
        assert answer is not None and answer.tolist() == [number + 10] * (number + 11)
        assert line.receive(0.0) is None


def test_every_byte_is_counted_once_at_either_end() -> None:
    door = InProcessDoor()
    line = door.line()
    for number in (0, 4, 9):
        line.send(message(number))
    assert (line.meter.sent, door.meter.received) == (16, 0)
    client = b""
    while (arrived := door.receive(0.0)) is not None:
        client = arrived[0]
    assert door.meter.received == 16
    door.send(client, message(6))
    assert (door.meter.sent, line.meter.received) == (7, 0)
    assert line.receive(0.0) is not None
    assert line.meter.received == 7


def test_a_line_lets_the_door_work_when_it_waits() -> None:
    door = InProcessDoor()
    line = door.line()
    steps = iter([True, True, False])

    def serve() -> bool:
        more = next(steps)
        if not more:
            return False
        if (arrived := door.receive(0.0)) is not None:
            door.send(arrived[0], arrived[1])
        return True

    door.serve = serve
    line.send(message(3))
    assert line.receive(60.0) is not None
    assert line.receive(60.0) is None


def test_threads() -> None:
    door = InProcessDoor()
    lines = [door.line() for _ in range(4)]

    def ask(line: InProcessLine, number: int) -> None:
        for _ in range(20):
            line.send(message(number))
            answer = line.receive(30.0)
            assert answer is not None and int(answer[0]) == number

    clients = [Thread(target=ask, args=pair) for pair in zip(lines, range(4), strict=True)]
    for client in clients:
        client.start()
    for _ in range(80):
        arrived = door.receive(30.0)
        assert arrived is not None
        door.send(*arrived)
    for client in clients:
        client.join()


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        ("lost", [0, 2]),
        ("twice", [0, 1, 1, 2]),
        ("late", [0, 2, 1]),
        ("spoilt", [0, 0, 2]),  # the first byte of message 1 is 1, and has its last bit changed
    ],
)
def test_fates(fate: Fate, expected: list[int]) -> None:
    door = InProcessDoor()
    line = UnreliableLine(door.line(), sending={1: fate})
    for number in range(3):
        line.send(message(number))
    assert received(door) == expected

    door = InProcessDoor()
    line = UnreliableLine(door.line(), receiving={1: fate})
    line.send(message(0))
    arrived = door.receive(0.0)
    assert arrived is not None
    for number in range(3):
        door.send(arrived[0], message(number))
    found = [line.receive(0.0) for _ in range(5)]
    assert [int(answer[0]) for answer in found if answer is not None] == expected
