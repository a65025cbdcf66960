"""Collectives: the same calls give the same on every transport, in the bytes documented."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
import torch

from thinwire.errors import UserError
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective, all_gather_bytes
from thinwire.transport.faulty import Faulty

torch.set_num_threads(1)

Together = Callable[..., list[Any]]
transports = pytest.mark.parametrize("transport", ["in process", "gloo"])
sizes = pytest.mark.parametrize("size", [2, 3])


def message(rank: int, length: int) -> torch.Tensor:
    return torch.full((length,), rank + 1, dtype=torch.uint8)


def parts_of(member: Collective, number: int) -> tuple[Any, ...]:
    """The arguments of `all_reduce`: a part for each worker, filled with `number`, to be summed."""
    parts = [torch.tensor([number], dtype=torch.uint8) for _ in range(member.size)]
    return parts, lambda given: sum(given[1:], given[0]), [1] * member.size


@transports
@sizes
@pytest.mark.parametrize("lengths", [(3, 0, 5), (0, 0, 0), (0, 1, 0), (70_000, 1, 2)])
@pytest.mark.parametrize("known", [False, True])
def test_all_gather_of_uneven_messages(
    transport: str, size: int, lengths: tuple[int, ...], known: bool, together: Together
) -> None:
    def work(member: Collective) -> list[torch.Tensor]:
        said = (lambda: lengths[:size]) if known else None
        return member.all_gather(message(member.rank, lengths[member.rank]), said).wait()

    for found in together(size, work, transport=transport):
        assert [m.dtype for m in found] == [torch.uint8] * size
        expected = [message(rank, lengths[rank]) for rank in range(size)]
        assert all(torch.equal(m, e) for m, e in zip(found, expected, strict=True))


@transports
@sizes
@pytest.mark.parametrize("lengths", [(3, 0, 5), (0, 0, 0), (40_000, 1, 2)])
def test_each_worker_reduces_its_part_for_all(
    transport: str, size: int, lengths: tuple[int, ...], together: Together
) -> None:
    """Part r of worker w holds the number w + 4 r; the result is the sum and 2 more bytes."""
    lengths = lengths[:size]

    def work(member: Collective) -> tuple[list[torch.Tensor], int, int]:
        parts = [message(member.rank + 4 * r - 1, length) for r, length in enumerate(lengths)]

        def reduce(given: Sequence[torch.Tensor]) -> torch.Tensor:
            assert len(given) == size
            return torch.cat([sum(given[1:], given[0]), message(member.rank, 2)])

        found = member.all_reduce(parts, reduce, [length + 2 for length in lengths]).wait()
        return found, member.meter.sent, member.meter.received

    for rank, (found, sent, received) in enumerate(together(size, work, transport=transport)):
        for r, reduced in enumerate(found):
            total = sum(w + 4 * r for w in range(size))
            assert reduced.tolist() == [total] * lengths[r] + [r + 1] * 2
        others = sum(lengths) - lengths[rank]
        assert sent == others + (size - 1) * (lengths[rank] + 2)
        assert received == (size - 1) * lengths[rank] + others + 2 * (size - 1)


@transports
@sizes
def test_broadcast_is_of_the_first(transport: str, size: int, together: Together) -> None:
    types = [torch.float32, torch.int64, torch.uint8]

    def work(member: Collective) -> list[torch.Tensor]:
        own = [torch.full((2, 2), member.rank + 7).to(dtype) for dtype in types]
        own.append(torch.tensor(member.rank + 7.0))
        for tensor in own:
            member.broadcast(tensor)
        return own

    for found in together(size, work, transport=transport):
        for tensor in found:
            assert torch.equal(tensor, torch.full_like(tensor, 7))


@transports
@sizes
def test_calls_may_be_waited_for_in_any_order_and_twice(
    transport: str, size: int, together: Together
) -> None:
    """Workers of unequal speed make the same calls; each takes what it has found when it likes."""

    def work(member: Collective) -> list[Any]:
        rng = random.Random(member.rank)
        pending: list[Any] = []
        for call in range(12):
            sleep(rng.random() * 0.003)
            if call % 3:
                pending.append(member.all_reduce(*parts_of(member, call)))
            else:
                pending.append(member.all_gather(message(member.rank, call)))
        order = list(range(12))
        rng.shuffle(order)
        for call in order:
            pending[call].wait()
        return [p.wait() for p in pending]

    for found in together(size, work, transport=transport):
        for call, result in enumerate(found):
            if call % 3:
                assert [m.tolist() for m in result] == [[call * size]] * size
            else:
                assert [len(m) for m in result] == [call] * size
                assert all(m.eq(rank + 1).all() for rank, m in enumerate(result))


@transports
def test_what_was_given_may_change_once_it_has_been_waited_for(
    transport: str, together: Together
) -> None:
    """Also while a slower worker has not looked yet."""
    changed = Event()

    def work(member: Collective) -> list[Any]:
        parts, reduce, sizes = parts_of(member, 7)
        sent = message(member.rank, 3)
        pending = [member.all_reduce(parts, reduce, sizes), member.all_gather(sent)]
        if member.rank == 0:
            found = [[m.clone() for m in p.wait()] for p in pending]
            for tensor in (*parts, sent):
                tensor.fill_(100)
            changed.set()
            return found
        assert changed.wait(20)
        return [p.wait() for p in pending]

    for reduced, gathered in together(2, work, transport=transport):
        assert [m.tolist() for m in reduced] == [[14]] * 2
        assert [m.tolist() for m in gathered] == [[1] * 3, [2] * 3]


@transports
def test_lengths_may_follow_from_an_earlier_call(transport: str, together: Together) -> None:
    """They are asked for when that has ended, while this worker goes on."""

    def work(member: Collective) -> list[torch.Tensor]:
        first = member.all_gather(torch.tensor([member.rank + 3], dtype=torch.uint8))
        second = member.all_gather(
            message(member.rank, member.rank + 3), lambda: [int(m) for m in first.wait()]
        )
        found = second.wait()
        # 8 for the length of the first message, which is 1, and the others' second one.
        assert member.meter.received == 8 + 1 + (4 - member.rank)
        return found

    for found in together(2, work, transport=transport):
        assert [m.tolist() for m in found] == [[1] * 3, [2] * 4]


@transports
def test_a_message_does_not_wait_for_a_reduction(transport: str, together: Together) -> None:
    """The second round of the calls is free while the first one reduces."""
    gathered = Event()

    def work(member: Collective) -> list[list[int]]:
        parts, reduce, sizes = parts_of(member, 2)

        def slowly(given: Sequence[torch.Tensor]) -> torch.Tensor:
            assert gathered.wait(20)
            return reduce(given)

        gathering = member.all_gather(message(member.rank, 1), lambda: [1, 1])
        reducing = member.all_reduce(parts, slowly, sizes)
        found = gathering.wait()
        gathered.set()
        return [m.tolist() for m in [*found, *reducing.wait()]]

    assert together(2, work, transport=transport) == [[[1], [2], [4], [4]]] * 2


# Bytes


def test_the_formulas_of_collectives() -> None:
    assert [all_gather_bytes(W, 1000) for W in (1, 2, 3, 4)] == [0, 1008, 2016, 3024]
    assert all_gather_bytes(3, 1000, lengths_known=True) == 2000


@transports
@sizes
def test_bytes_are_counted_as_documented(transport: str, size: int, together: Together) -> None:
    lengths = (10, 0, 333)

    def work(member: Collective) -> list[tuple[int, int]]:
        counted = []

        def count() -> None:
            counted.append((member.meter.sent, member.meter.received))

        count()
        member.all_gather(message(member.rank, 56), lambda: [56] * size).wait()
        count()
        pending = member.all_gather(message(member.rank, lengths[member.rank]))
        count()  # what is sent counts at once
        pending.wait()
        pending.wait()
        count()
        member.broadcast(torch.zeros(5))
        count()
        return counted

    for rank, counted in enumerate(together(size, work, transport=transport)):
        others = sum(lengths[:size]) - lengths[rank]
        steps = [
            ((size - 1) * 56, (size - 1) * 56),
            ((size - 1) * (8 + lengths[rank]), 0),
            (0, 8 * (size - 1) + others),
            (20 * (size - 1), 0) if rank == 0 else (0, 20),
        ]
        expected = [(0, 0)]
        for sent, received in steps:
            expected.append((expected[-1][0] + sent, expected[-1][1] + received))
        assert counted == expected


def test_alone_there_is_no_wire() -> None:
    alone, tensor = Alone(), torch.ones(3)
    assert alone.all_gather(tensor).wait() == [tensor]
    assert (
        alone.all_reduce([tensor], lambda parts: parts[0] + 1, [12]).wait()[0].tolist() == [2.0] * 3
    )
    alone.broadcast(tensor)
    alone.close()
    assert (alone.size, alone.meter.sent, alone.meter.received) == (1, 0, 0)
    assert alone.name_of(0) == "the only worker"


# Faults


@transports
@sizes
@pytest.mark.parametrize("how", ["raises", "returns"])
def test_a_worker_that_leaves_is_named(
    transport: str, size: int, how: str, outcomes: Together
) -> None:
    def work(member: Collective) -> None:
        member.all_reduce(*parts_of(member, 3)).wait()
        if member.rank == 1:
            if how == "raises":
                raise UserError("the dog has eaten it")
            return
        while True:
            member.all_reduce(*parts_of(member, 3)).wait()
            member.all_gather(message(member.rank, 3)).wait()

    began = monotonic()
    found = outcomes(size, work, transport=transport, timeout_seconds=1.0)
    assert monotonic() - began < 15
    for rank in {0, 2} & set(range(size)):
        assert isinstance(found[rank], UserError)
        assert f"worker 1 of {size}" in str(found[rank])
    if how == "raises" and transport == "gloo":
        assert "has ended: the dog has eaten it" in str(found[0])


@transports
def test_a_worker_that_is_silent_is_named_in_time(transport: str, outcomes: Together) -> None:
    over = Event()

    def work(member: Collective) -> None:
        if member.rank == 1:
            assert over.wait(30)
            return
        try:
            member.all_gather(message(0, 3)).wait()
        finally:
            over.set()

    began = monotonic()
    found = outcomes(2, work, transport=transport, timeout_seconds=0.5)
    assert monotonic() - began < 15
    assert isinstance(found[0], UserError) and "worker 1 of 2" in str(found[0])


def test_a_worker_that_does_not_come_is_named() -> None:
    from torch.distributed import HashStore

    from thinwire.transport.c10d import C10d

    with pytest.raises(UserError, match=r"worker 1 of 2 has not come within 0\.3 seconds"):
        C10d(HashStore(), 0, 2, 0.3, torch.device("cpu"), loopback=True, rendezvous_seconds=0.0)


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_the_faulty_one_fails_at_the_call_it_is_told(failing: int) -> None:
    calls = [
        lambda member: member.all_reduce(*parts_of(member, 1)).wait(),
        lambda member: member.all_gather(message(0, 1)).wait(),
        lambda member: member.broadcast(torch.ones(1)),
        lambda member: member.all_reduce(*parts_of(member, 1)).wait(),
    ]
    faulty = Faulty(Alone(), failing)
    for number, call in enumerate(calls):
        if number == failing:
            with pytest.raises(UserError, match="the only worker has lost the others"):
                call(faulty)
        else:
            call(faulty)


def test_the_faulty_one_counts_what_the_other_counts(together: Together) -> None:
    def work(member: Collective) -> tuple[int, int]:
        faulty = Faulty(member, failing_call=99)
        faulty.all_gather(message(0, 5)).wait()
        assert faulty.name_of(1) == member.name_of(1)
        return faulty.meter.sent, faulty.meter.received

    assert together(2, work) == [(13, 13)] * 2


class DeadPeer:
    """Stands in for an NCCL group of which another worker has died."""

    def alltoall_base(self, *args: object) -> DeadPeer:
        return self

    def broadcast(self, tensors: object) -> DeadPeer:
        return self

    def wait(self) -> None:
        from torch.distributed import DistBackendError

        raise DistBackendError("NCCL communicator was aborted on rank 0.\nmore lines")


@pytest.mark.parametrize("call", ["gather", "all_reduce", "broadcast"])
def test_what_nccl_raises_names_the_worker_that_has_gone(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed import HashStore

    from thinwire.transport.c10d import C10d

    monkeypatch.setattr(C10d, "_make_group", lambda *args: DeadPeer())
    store = HashStore()
    store.set("name/1", "host, process 7")  # it came, and says nothing any more
    member = C10d(store, 0, 2, 0.2, torch.device("cpu"), loopback=True)
    made = {
        "gather": lambda: member.all_gather(message(0, 3)).wait(),
        "all_reduce": lambda: member.all_reduce(*parts_of(member, 3)).wait(),
        "broadcast": lambda: member.broadcast(torch.zeros(3)),
    }
    for _ in range(2):  # the second is not even made
        with pytest.raises(UserError, match=r"^worker 1 of 2 \(host, process 7\) has stopped answ"):
            made[call]()
    member.close()


def test_nccl_is_asked_to_raise_where_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in: its watchdog would end the process before anything could be said."""
    from torch.distributed import HashStore

    from thinwire.transport.c10d import C10d

    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", "0")
    member = C10d(HashStore(), 0, 1, 1.0, torch.device("cpu"), loopback=True)
    seen = []

    class Group:
        class Options:
            _timeout = None

        def __init__(self, *args: object) -> None:
            seen.append(os.environ["TORCH_NCCL_BLOCKING_WAIT"])

    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", Group, raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    member.device = torch.device("cuda", 0)
    member._make_group(HashStore(), timedelta(seconds=1), False)
    member.device = torch.device("cpu")
    member.close()
    assert seen == ["1"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts this process's files")
def test_too_few_descriptors_are_said_before_gloo_ends_the_process() -> None:
    from thinwire.transport.c10d import _num_descriptors, loopback_group

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 10, before[1]))
    try:
        with pytest.raises(UserError, match="need 24 more open files, and the system allows "):
            loopback_group(2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(os.listdir("/proc/self/fd")) == num_open
    for size in (2, 3):
        members = loopback_group(size)
        try:
            opened = len(os.listdir("/proc/self/fd")) - num_open
            assert opened <= size * _num_descriptors(size)
        finally:
            for member in members:
                member.close()
