"""Collectives: the same calls give the same on every transport, in the bytes documented."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
import torch

from thinwire.errors import UserError
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective, all_gather_bytes, all_reduce_bytes
from thinwire.transport.faulty import Faulty

torch.set_num_threads(1)

Together = Callable[..., list[Any]]
transports = pytest.mark.parametrize("transport", ["in process", "gloo"])
sizes = pytest.mark.parametrize("size", [2, 3])


def message(rank: int, length: int) -> torch.Tensor:
    return torch.full((length,), rank + 1, dtype=torch.uint8)


@transports
@sizes
def test_all_reduce_adds_up(transport: str, size: int, together: Together) -> None:
    types = [torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.int64]

    def work(member: Collective) -> list[torch.Tensor]:
        own = [torch.arange(5).to(dtype) * (member.rank + 1) for dtype in types]
        shaped = torch.ones(2, 3) * member.rank
        pending = [member.all_reduce(tensor) for tensor in [*own, shaped]]
        return [found.wait() for found in pending]

    factor = sum(range(1, size + 1))
    for *found, shaped in together(size, work, transport=transport):
        for dtype, tensor in zip(types, found, strict=True):
            assert tensor.dtype == dtype
            assert tensor.tolist() == [factor * i for i in range(5)]
        assert torch.equal(shaped, torch.full((2, 3), float(factor - size)))


@transports
@sizes
def test_every_worker_finds_the_same_bits(transport: str, size: int, together: Together) -> None:
    def work(member: Collective) -> torch.Tensor:
        generator = torch.Generator().manual_seed(member.rank)
        return member.all_reduce(torch.randn(1001, generator=generator)).wait()

    first, *others = together(size, work, transport=transport)
    assert all(torch.equal(first, other) for other in others)


@transports
@sizes
@pytest.mark.parametrize("lengths", [(3, 0, 5), (0, 0, 0), (0, 1, 0), (70_000, 1, 2)])
def test_all_gather_of_uneven_messages(
    transport: str, size: int, lengths: tuple[int, ...], together: Together
) -> None:
    def work(member: Collective) -> list[torch.Tensor]:
        return member.all_gather(message(member.rank, lengths[member.rank])).wait()

    for found in together(size, work, transport=transport):
        assert [m.dtype for m in found] == [torch.uint8] * size
        expected = [message(rank, lengths[rank]) for rank in range(size)]
        assert all(torch.equal(m, e) for m, e in zip(found, expected, strict=True))


@transports
@sizes
@pytest.mark.parametrize("lengths", [(3, 0, 5), (0, 0, 0), (40_000, 1, 2)])
def test_each_worker_merges_its_part_for_all(
    transport: str, size: int, lengths: tuple[int, ...], together: Together
) -> None:
    """Part r of worker w is of the number w + 4 r; what is merged is the sum, and 2 bytes more."""
    lengths = lengths[:size]

    def work(member: Collective) -> tuple[list[torch.Tensor], int, int]:
        parts = [message(member.rank + 4 * r - 1, length) for r, length in enumerate(lengths)]

        def merge(given: Sequence[torch.Tensor]) -> torch.Tensor:
            assert len(given) == size
            return torch.cat([sum(given[1:], given[0]), message(member.rank, 2)])

        found = member.merge(parts, merge, [length + 2 for length in lengths]).wait()
        return found, member.meter.sent, member.meter.received

    for rank, (found, sent, received) in enumerate(together(size, work, transport=transport)):
        for r, merged in enumerate(found):
            total = sum(w + 4 * r for w in range(size))
            assert merged.tolist() == [total] * lengths[r] + [r + 1] * 2
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
                pending.append(member.all_reduce(torch.tensor([float(call)])))
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
                assert result.tolist() == [call * size]
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
        own, sent = torch.ones(4), message(member.rank, 3)
        summing, gathering = member.all_reduce(own), member.all_gather(sent)
        if member.rank == 0:
            found = [summing.wait().clone(), [m.clone() for m in gathering.wait()]]
            own.fill_(100.0)
            sent.fill_(100)
            changed.set()
            return found
        assert changed.wait(20)
        return [summing.wait(), gathering.wait()]

    for summed, gathered in together(2, work, transport=transport):
        assert summed.tolist() == [2.0] * 4
        assert [m.tolist() for m in gathered] == [[1] * 3, [2] * 3]


# Bytes


def test_the_formulas_of_collectives() -> None:
    assert [all_reduce_bytes(W, 1000) for W in (1, 2, 3, 4)] == [0, 1000, 1333, 1500]
    assert [all_gather_bytes(W, 1000) for W in (1, 2, 3, 4)] == [0, 1008, 2016, 3024]


@transports
@sizes
def test_bytes_are_counted_as_documented(transport: str, size: int, together: Together) -> None:
    lengths = (10, 0, 333)

    def work(member: Collective) -> list[tuple[int, int]]:
        counted = []

        def count() -> None:
            counted.append((member.meter.sent, member.meter.received))

        count()
        member.all_reduce(torch.zeros(7, dtype=torch.float64)).wait()
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
        summed = 2 * (size - 1) * 56 // size
        steps = [
            (summed, summed),
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
    assert alone.all_reduce(tensor).wait() is tensor
    assert alone.all_gather(tensor).wait() == [tensor]
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
        member.all_reduce(torch.ones(3)).wait()
        if member.rank == 1:
            if how == "raises":
                raise UserError("the dog has eaten it")
            return
        while True:
            member.all_reduce(torch.ones(3)).wait()
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
        C10d(HashStore(), 0, 2, 0.3, torch.device("cpu"), loopback=True, meeting_seconds=0.0)


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_the_faulty_one_fails_at_the_call_it_is_told(failing: int) -> None:
    calls = [
        lambda member: member.all_reduce(torch.ones(1)).wait(),
        lambda member: member.all_gather(message(0, 1)).wait(),
        lambda member: member.broadcast(torch.ones(1)),
        lambda member: member.all_reduce(torch.ones(1)).wait(),
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
