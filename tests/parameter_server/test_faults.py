"""What the wire loses or spoils, and workers that join, leave, and come again.

D width, M servers.
"""

from __future__ import annotations

from itertools import count

import pytest
import torch
from torch import Tensor

from thinwire.errors import UserError
from thinwire.parameter_server import connections as connections_module
from thinwire.parameter_server.accumulation import GradientBuffer
from thinwire.parameter_server.connections import Lost, Stopped
from thinwire.parameter_server.protocol import Kind, json_message, small_message
from thinwire.parameter_server.session import SeenNumbers
from thinwire.transport.messages import Fault

from .world import STEPS, Worker, World, alone, assert_same, touched

# Faults of the wire


@pytest.mark.parametrize("fate", ["twice", "late", "spoilt", "lost"])
@pytest.mark.parametrize("direction", ["sending", "receiving"])
def test_faults_lose_a_step_at_most(fate: Fault, direction: str) -> None:
    """Every message of the first steps in turn; the run goes on, and no push counts twice."""
    for number in range(1, 8):
        world = World()
        worker = world.worker_with(**{direction: {number: fate}})
        done = 0
        while done < 8:
            try:
                worker.step(done)
                done += 1
            except Lost:
                worker.join()
        world.flush()
        assert 7 <= len(world.taus) <= 8
        for name, ids in touched(7).rows.items():
            assert worker.tables[name][ids].isfinite().all()
        assert len(world.warnings) <= 1


def test_what_was_lost_is_sent_again() -> None:
    """An answer that never arrives: the server must not believe that the worker holds its rows."""
    world = World()
    worker = world.worker_with(receiving={2: "lost"})
    with pytest.raises(Lost):
        for step in (0, 0):
            worker.fetch(step)
            worker.push(step)
    other = world.worker("other")
    other.step(0)
    world.flush()
    worker.client.fetch(touched(0))  # without joining again
    for name, ids in touched(0).rows.items():
        assert torch.equal(worker.tables[name][ids], world.values()[name][ids])


def test_numbers_count_once_in_any_order() -> None:
    numbers = SeenNumbers()
    assert [numbers.first(n) for n in (1, 3, 2, 2, 3, 1, 5, 4)] == [
        True, True, True, False, False, False, True, True,
    ]  # fmt: skip
    assert numbers.first(10**9)
    assert not numbers.first(6)


GARBAGE = [
    b"",
    b"x",
    b"TWF1",
    b"TWF1" + bytes(100),
    bytes(16),
    b"TWF1\x02\0\0\0\xff\xff\xff\x7f\0\0\0\0",
    b"GET / HTTP/1.1\r\n\r\n",
]


def spoilt_messages() -> list[Tensor]:
    """What no worker says: bytes, kinds, numbers and JSON out of place."""
    found = [torch.tensor(list(data), dtype=torch.uint8) for data in GARBAGE]
    for kind in Kind:
        found += [
            small_message(kind),
            small_message(kind, text="{}"),
            small_message(kind, text="[1]"),
            small_message(kind, text="\0"),
        ]
        found += [
            small_message(kind, float("nan")),
            small_message(kind, -1.0, 2.5),
            small_message(kind, *[1.0] * 30),
        ]
        found += [
            small_message(kind, *[float("inf")] * 40),
            json_message(kind, {"incarnation": "x"}),
        ]
    return found


def test_garbage_is_left_alone_with_one_warning() -> None:
    world = World()
    worker = world.worker()
    worker.step(0)
    stranger = world.listeners[0].connection()
    for message in spoilt_messages():
        stranger.send(message)
        world.flush()
    assert len(world.warnings) == 1
    worker.step(1)
    world.flush()
    assert_same(world.values(), alone(2))
    assert list(world.servers[0].sessions) == [worker.servers.incarnation]


def test_a_worker_that_speaks_wrongly_changes_nothing() -> None:
    """Messages of a worker's own, cut off or with a byte changed, anywhere."""
    world = World()
    worker = world.worker()
    sent: list[Tensor] = []
    connection = worker.servers.connections[0]
    send = connection.send
    connection.send = lambda message: (sent.append(message), send(message))[1]
    worker.step(0)
    world.flush()
    connection.send = send
    before = world.values()
    for message in sent:
        for length in range(0, len(message), 7):
            connection.send(message[:length])
        for place in range(4, min(len(message), 300), 3):
            spoilt = message.clone()
            spoilt[place] ^= 128
            world.servers[0].handle(b"\0\0\0\0", spoilt)
    world.flush()
    assert all(value.isfinite().all() for value in before.values())
    assert len(world.warnings) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, 1e9])
def test_gradients_that_are_no_workers_are_refused(value: float) -> None:
    world = World()
    worker, before = world.worker(), world.values()
    worker.fetch(0)
    worker.client._clip = 0.0
    worker.rows["embedding"].grad[0, 0] = value
    worker.push(0)
    world.flush()
    assert_same(world.values(), before)
    assert world.taus == [] and len(world.stewards[0].refusals) == 1
    assert not world.servers[0].all_refused
    for step in (1, 2):
        worker.fetch(step)
        worker.rows["embedding"].grad[0, 0] = value
        worker.push(step)
    world.flush()
    assert world.servers[0].all_refused
    other = world.worker("other")
    other.step(3)
    world.flush()
    assert not world.servers[0].all_refused  # one whose pushes are applied is enough


def test_pushes_of_named_rows_and_of_all_make_one_update() -> None:
    buffer = GradientBuffer()
    buffer.add({"t": (torch.tensor([2]), torch.tensor([[4.0]]))})
    buffer.add({"t": (None, torch.tensor([[1.0], [2.0], [3.0]]))})
    ids, values = buffer.take()["t"]
    assert ids is None and values.tolist() == [[0.5], [1.0], [3.5]]


# Joining and leaving


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"data": "e" * 32}, "fingerprint dddddddddddd, but that of new has eeeeeeeeeeee"),
        ({"version": "2"}, r"the server runs thinwire 1 \(protocol 5\) and new runs 2"),
    ],
)
def test_who_cannot_join_is_told_why(about: dict[str, str], sentence: str) -> None:
    world = World()
    with pytest.raises(UserError, match=sentence):
        world.worker("new", **about)
    assert not world.servers[0].sessions


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count(0.0, 0.5)
    monkeypatch.setattr(connections_module, "ALIVE_SECONDS", 0.0)
    monkeypatch.setattr(connections_module, "monotonic", lambda: next(seconds))
    world = World()
    world.stewards[0].ready = False
    with pytest.raises(
        UserError, match="the server in this process has not answered new for 60 seconds"
    ):
        world.worker("new")
    assert 60.0 < next(seconds) < 62.0


def test_a_server_may_take_longer_to_start_than_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count(0.0, 0.5)
    monkeypatch.setattr(connections_module, "ALIVE_SECONDS", 0.0)
    world = World()

    def monotonic() -> float:
        now = next(seconds)
        world.stewards[0].ready = now > 50.0
        return now

    monkeypatch.setattr(connections_module, "monotonic", monotonic)
    world.worker("new")
    assert next(seconds) > 50.0 and len(world.servers[0].sessions) == 1


def test_servers_in_any_order_and_only_those_of_one_run() -> None:
    world = World(3)
    first, second, third = world.connections()
    worker = Worker(world, "worker", [third, first, second])
    for step in range(STEPS):
        worker.step(step)
    world.flush()
    assert_same(world.values(), alone(), rtol=1e-5, atol=1e-6)

    with pytest.raises(UserError, match="the run has 3 servers, and 2 are named"):
        Worker(world, "new", world.connections()[:2])
    with pytest.raises(UserError, match="are the same server of the run, the one with shard 1"):
        connections = world.connections()
        Worker(world, "new", [connections[0], connections[1], world.listeners[1].connection()])
    world.stewards[2].about["run"] = "b"
    with pytest.raises(UserError, match=r"serves the run a, and .* the run b"):
        Worker(world, "new", world.connections())


def test_a_server_that_was_started_again_does_not_know_its_workers() -> None:
    world = World()
    worker = world.worker()
    worker.step(0)
    world.flush()
    world.servers[0] = world.server(0)
    with pytest.raises(Lost):
        worker.step(1)
    worker.join()
    worker.step(1)
    world.flush()
    assert_same(world.values(), alone(2))


def test_a_silent_worker_loses_its_place_and_disturbs_nobody() -> None:
    world = World(timeout_seconds=5.0)
    server = world.servers[0]
    sleeper, other = world.worker("sleeper"), world.worker("other")
    sleeper.fetch(0)
    for second in range(8):
        server.tick(float(second))
        other.step(second)
        world.flush()
    assert world.stewards[0].gone == ["sleeper has been silent for 5 seconds"]
    before = world.values()
    sleeper.push(0)
    world.flush()
    assert_same(world.values(), before)
    with pytest.raises(Lost):
        sleeper.fetch(1)
    sleeper.join()
    sleeper.step(1)
    world.flush()
    assert world.taus[-1] == 0


def test_a_server_that_was_stopped_finds_nobody_silent() -> None:
    world = World(timeout_seconds=5.0)
    world.worker()
    world.servers[0].tick(0.0)
    world.servers[0].tick(1000.0)
    assert len(world.servers[0].sessions) == 1


def test_a_name_that_comes_again_takes_its_place_over() -> None:
    world = World()
    dead, other = world.worker("worker 0"), world.worker("worker 1")
    dead.fetch(0)
    replacement = world.worker("worker 0")
    assert replacement.welcome.slot == dead.welcome.slot != other.welcome.slot
    dead.push(0)
    world.flush()
    assert world.taus == []
    with pytest.raises(Lost):
        dead.fetch(1)


def test_goodbye_brings_the_whole_account() -> None:
    world = World()
    worker = world.worker()
    for step in range(3):
        worker.step(step)
    connection = worker.servers.connections[0]
    before = worker.servers.account()
    worker.servers.goodbye()
    world.flush()
    assert world.stewards[0].gone == ["worker has said goodbye"]
    assert world.servers[0].wire()[1:] == before[1:]
    assert connection.meter.sent > before.bytes_sent
    assert world.servers[0].wire()[1:] == before[1:]  # and it is not counted twice


def test_who_waits_is_told_so_while_the_parameters_stand_still() -> None:
    world = World(timeout_seconds=5.0)
    server, worker = world.servers[0], world.worker()
    worker.fetch(0)
    server.tick(0.0)
    server.hold()
    before = world.values()
    assert not server.all_wait
    worker.push(0)
    ahead = touched(1)
    worker.client.pull_rows(ahead)
    world.flush()
    assert server.all_wait
    assert_same(world.values(), before)
    server.tick(1.0)
    message = worker.servers.poll(0)
    assert message is not None and message[0] is Kind.WAIT
    server.release()
    worker.client.fetch(ahead)
    assert_same(world.values(), alone(1))


def test_who_has_pulled_ahead_computes_no_longer_than_to_its_push() -> None:
    world = World()
    server, worker = world.servers[0], world.worker()
    assert server.all_wait
    worker.fetch(0)
    worker.client.pull_rows(touched(1))
    world.flush()
    assert not server.all_wait
    worker.push(0)
    world.flush()
    assert server.all_wait


def test_who_has_died_between_pull_and_push_is_not_waited_for_long() -> None:
    """It counts as computing for three seconds, or for twice its slowest step."""
    world = World(timeout_seconds=60.0)
    server, dead, slow = world.servers[0], world.worker("dead"), world.worker("slow")
    dead.step(0)
    slow.fetch(0)
    for now in range(6):
        server.tick(float(now))
    slow.push(0)  # it has taken 5 seconds
    world.flush()
    assert server.all_wait
    dead.fetch(1)
    slow.fetch(1)
    seconds_until: dict[str, int] = {}
    for now in range(6, 20):
        server.tick(float(now))
        for worker in (dead, slow):
            session = server.sessions[worker.servers.incarnation]
            if not session.computes(server._uptime):
                seconds_until.setdefault(session.name, now - 5)
    assert seconds_until == {"dead": 4, "slow": 11}
    assert server.all_wait and len(server.sessions) == 2


def test_the_end_is_told_to_everyone() -> None:
    world = World()
    worker = world.worker()
    worker.fetch(0)
    world.servers[0].stop("its budget is spent")
    worker.push(0)
    for action in (lambda: worker.fetch(1), worker.join, lambda: world.worker("new")):
        with pytest.raises(Stopped, match="its budget is spent") as caught:
            action()
        assert not caught.value.failed
    assert world.taus == []


@pytest.mark.parametrize("action", ["join", "fetch"])
def test_workers_are_told_that_a_run_has_failed(action: str) -> None:
    world = World()
    worker = world.worker()
    world.servers[0].stop("no space left", failed=True)
    with pytest.raises(Stopped, match="no space left") as caught:
        worker.join() if action == "join" else worker.fetch(0)
    assert caught.value.failed
