"""Messages with the right key that no worker and no server of the run sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire import __version__
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.parameter_server.fields import LARGEST_WHOLE
from thinwire.parameter_server.follower import Follower
from thinwire.parameter_server.protocol import (
    PROTOCOL,
    Kind,
    Position,
    Push,
    Report,
    Selection,
    WireAccount,
    json_message,
    json_of,
    read_message,
    small_message,
)
from thinwire.parameter_server.server import LONGEST_NAME, MOST_DEFERRED
from thinwire.parameter_server.sharding import (
    MODEL,
    contents,
    described,
    optimizers_of,
    parameters_of,
)
from thinwire.transport.messages import InProcessListener

from .world import World, alone, assert_same, touched

Settings = Callable[..., RunConfig]
LEAD = bytes(8)
"""The address of the first connection that a listener in the process makes."""
DEEP = "[" * 100_000


def test_json_that_is_nested_deep_is_no_message() -> None:
    _, frame = read_message(small_message(Kind.HELLO, text=DEEP))
    with pytest.raises(ValueError, match="nested too deep"):
        json_of(frame)


@pytest.mark.parametrize("text", [DEEP, '{"incarnation":' * 50_000])
def test_a_server_and_its_workers_outlive_deep_json(text: str) -> None:
    world = World()
    worker = world.worker()
    stranger = world.listeners[0].connection()
    for kind in (Kind.HELLO, Kind.LEAD, Kind.LOAD):
        stranger.send(small_message(kind, text=text))
    worker.step(0)
    world.flush()
    assert_same(world.values(), alone(1))
    assert len(world.warnings) == 1


@pytest.mark.parametrize("field", ["name", "thinwire", "data"])
def test_only_short_text_is_a_name(field: str) -> None:
    """What a worker says of itself stands in sentences."""
    world = World()
    worker = world.worker()
    stranger = world.listeners[0].connection()
    hello = {"protocol": PROTOCOL, "incarnation": 7, "thinwire": "1", "data": "d", "name": "n"}
    for odd in (3, None, ["x"], {"a": 1}, "x" * (LONGEST_NAME + 1), "\n" * 10**6):
        stranger.send(json_message(Kind.HELLO, hello | {field: odd}))
    world.flush()
    assert stranger.receive(0.0) is None
    assert list(world.servers[0].sessions) == [worker.servers.incarnation]
    assert len(world.warnings) == 1 and len(world.warnings[0]) < LONGEST_NAME
    stranger.send(json_message(Kind.HELLO, hello | {field: "x" * LONGEST_NAME}))
    world.flush()
    assert stranger.receive(0.0) is not None


@pytest.mark.parametrize("number", [1e300, float("inf"), float("nan"), -1.0, 2 * LARGEST_WHOLE])
def test_a_goodbye_whose_account_is_too_large_is_left_alone(number: float) -> None:
    """Added up, such numbers are infinite, and a record of them is no JSON."""
    world = World()
    worker = world.worker()
    worker.step(0)
    world.flush()
    before = world.servers[0].wire()
    for place in range(3):
        account = [1.0, 2.0, 3.0]
        account[place] = number
        goodbye = small_message(Kind.GOODBYE, worker.servers.incarnation, *account)
        worker.servers.connections[0].send(goodbye)
    worker.servers.connections[0].send(
        small_message(Kind.GOODBYE, worker.servers.incarnation, *[1.0] * 9)
    )
    world.flush()
    assert world.servers[0].wire() == before
    assert list(world.servers[0].sessions) == [worker.servers.incarnation]
    assert len(world.warnings) == 1


def test_the_largest_accounts_still_add_up() -> None:
    world = World()
    for number in range(3):
        worker = world.worker(f"worker {number}")
        about = worker.servers.incarnation, *[LARGEST_WHOLE] * 3
        worker.servers.connections[0].send(small_message(Kind.GOODBYE, *about))
    world.flush()
    assert world.servers[0].wire() == WireAccount(*[3 * LARGEST_WHOLE] * 3)


def test_no_worker_has_more_kept_back_than_one_can_have_under_way() -> None:
    """Of one that floods a server which evaluates; another's pull is still kept, and answered."""
    world = World()
    server, listener = world.servers[0], world.listeners[0]
    flood, other = world.worker("flood"), world.worker("other")
    sent: list[Tensor] = []
    connection = flood.servers.connections[0]
    send = connection.send
    connection.send = lambda message: (sent.append(message), send(message))[1]  # type: ignore[method-assign,func-returns-value]
    flood.step(0)
    world.flush()
    pushes = [m for m in sent if read_message(m)[0] is Kind.PUSH]
    pushed = Push.read(read_message(pushes[0])[1], server.shard.num_rows)
    version = server.shard.version
    server.hold()
    for number in range(2, 2 + 10 * MOST_DEFERRED):
        send(replace(pushed, number=number).pack())
    while (arrived := listener.receive(0.0)) is not None:
        server.handle(*arrived)
    assert len(server._deferred) == MOST_DEFERRED
    other.client._send_pull(other.client._row_request(touched(0), other.client._selected()))
    while (arrived := listener.receive(0.0)) is not None:
        server.handle(*arrived)
    assert len(server._deferred) == MOST_DEFERRED + 1
    server.release()
    assert server._deferred == [] and server.shard.version == version + MOST_DEFERRED
    other.client._receive()  # the answer has come
    assert other.client._held == 1


def test_the_rows_that_changed_are_a_part_even_of_no_rows() -> None:
    """The mean of nothing is NaN, which would spoil the record of the whole run."""
    world = World()
    shard = world.shards[0]
    name = next(iter(shard.tables))
    none = torch.empty(0, dtype=torch.int64)
    assert shard._changed_rows({}, 0) == 0.0
    assert shard._changed_rows({name: (none, torch.empty(0, 4))}, 0) == 0.0
    shard._changed[name][2] = 5
    some = {name: (torch.tensor([1, 2]), torch.zeros(2, 4))}
    assert shard._changed_rows(some, 4) == 0.5


# A follower


@pytest.fixture
def follower(toy_data: Path, tiny: Settings) -> Follower:
    """Server 1 of 2, which serves the run "a" but has not been given its rows."""
    config = tiny(exchange={"kind": "async"})
    listener = InProcessListener()
    listener.connection()
    found = Follower(
        Corpus.open(toy_data), config, 1, 2, lambda _: listener, print, torch.device("cpu")
    )
    for parameter in found.shard.parameters.values():
        parameter.data.zero_()
    lead = {"protocol": PROTOCOL, "thinwire": __version__, "data": found._data, "run": "a"}
    lead |= {"shard": 1, "num_shards": 2, "settings": asdict(config), "request": None}
    tell(found, json_message(Kind.LEAD, lead | {"handed_over": False}))
    assert found._run_id == "a" and not found._ready
    return found


def tell(follower: Follower, message: Tensor) -> None:
    follower.server.handle(LEAD, message)


def rows(follower: Follower) -> dict[str, Tensor]:
    found = {f"{MODEL}{n}": t.clone() for n, t in parameters_of(follower.shard).items()}
    return found | {n: t.clone() for n, t in optimizers_of(follower.shard).items()}


def take(held: dict[str, Tensor], **about: Any) -> Tensor:
    return json_message(Kind.LOAD, {"run": "a", "tensors": described(held)} | about, contents(held))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda held: held.pop(next(iter(held))),
        lambda held: held.pop(list(held)[-1]),
        lambda held: held.pop(next(n for n in held if n.startswith("rows."))),
        lambda held: held.update({next(iter(held)): torch.ones(1)}),
        lambda held: held.update({next(iter(held)): torch.ones(0)}),
        lambda held: held.update(
            {list(held)[1]: torch.full_like(list(held.values())[1], torch.nan)}
        ),
        lambda held: held.clear(),
    ],
    ids=["no table", "no last entry", "no sums", "one number", "nothing", "NaN", "all missing"],
)
def test_a_bad_take_changes_nothing(spoil: Any, follower: Follower) -> None:
    before = rows(follower)
    held = {n: torch.ones_like(t) for n, t in before.items()}
    spoil(held)
    tell(follower, take(held))
    assert not follower._ready
    for name, tensor in rows(follower).items():
        assert torch.equal(tensor, before[name]), name
    good = {n: torch.ones_like(t) for n, t in before.items()}
    tell(follower, take(good))
    assert follower._ready
    for name, tensor in rows(follower).items():
        assert (tensor == 1).all(), name


@pytest.mark.parametrize(
    "about",
    [
        {"run": "another"},
        {"tensors": None},
        {"tensors": [["model/embedding.weight", "no_type", [1]]]},
        {"tensors": [["model/embedding.weight", "float32", [-1, 3]]]},
        {"tensors": 3},
    ],
)
def test_a_take_that_describes_other_than_it_brings(about: Any, follower: Follower) -> None:
    before = rows(follower)
    tell(follower, take(before, **about))
    assert not follower._ready
    for name, tensor in rows(follower).items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("factor", [-0.1, 1.0001, 1e30, float("inf"), float("nan")])
def test_a_follower_takes_no_factor_that_no_schedule_has(factor: float, follower: Follower) -> None:
    follower.shard.factor = 0.5
    push = _push(factor)
    with pytest.raises(ValueError, match="a schedule has no factor of"):
        follower.check_push(None, push)  # type: ignore[arg-type]
    assert follower.shard.factor == 0.5
    for good in (0.0, 0.25, 1.0):
        follower.check_push(None, _push(good))  # type: ignore[arg-type]
        assert follower.shard.factor == good


def _push(factor: float) -> Push:
    report = Report(1.0, 1.0, 1, Position(), WireAccount())
    return Push(1, 1, 1, False, factor, report, Selection((), ()), ())
