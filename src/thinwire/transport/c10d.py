"""Collectives of `torch.distributed`: Gloo between CPUs, NCCL between GPUs.

A call has up to two rounds: first what must be there before the rest, the lengths of messages or
the parts to merge, then messages. Each round has a thread and a group of its own, and goes through
the calls in the order in which they were made, so that two workers can never wait for each other
crosswise. A message waits only for those before it in its own round, and the thread that computes
for none. On GPUs, where two groups must not work at a time, both rounds have the same thread.

When a call fails, or takes too long, the workers hold a roll-call through the store: whoever does
not answer is named. Not tried on GPUs.

W workers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Lock
from time import monotonic, sleep
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, PrefixStore, Store

from thinwire.errors import UserError
from thinwire.transport.collective import Collective, Lengths, Merge, Pending
from thinwire.transport.descriptors import require_descriptors
from thinwire.transport.timeouts import MEETING_SECONDS, ROLL_CALL_SECONDS

T = TypeVar("T")


class C10d(Collective):
    """One worker of a process group.

    Args:
        store: what the workers find each other through; of this attempt of the run alone.
        rank: this worker, from 0.
        size: all workers.
        timeout_seconds: the longest wait for the others.
        device: where the model lives; on a GPU the group is NCCL's, else Gloo's.
        loopback: let nothing outside this machine connect (Gloo).
        meeting_seconds: the least time that the others have to come.

    Raises:
        UserError: a worker did not come.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        timeout_seconds: float,
        device: torch.device,
        *,
        loopback: bool,
        meeting_seconds: float = MEETING_SECONDS,
    ) -> None:
        super().__init__(rank, size)
        self._store = store
        self._timeout_seconds = timeout_seconds
        # What a group needs lies here: NCCL wants the GPU's memory, Gloo the host's.
        self.device = device if device.type == "cuda" else torch.device("cpu")
        if self.device.type == "cpu":
            require_descriptors(_num_descriptors(size))
        first = _Round()
        self._first, self._second = first, first if device.type == "cuda" else _Round()
        self._busy_time = _BusyTime(self)
        self._failure: RuntimeError | None = None
        """Of the first call that failed; none is made after it."""
        self._verdict: UserError | None = None
        self._abandoned = False
        timeout = timedelta(seconds=timeout_seconds)
        store.set_timeout(timeout)
        self._names = self._meet(max(timeout_seconds, meeting_seconds))
        for number, turn in enumerate(dict.fromkeys((self._first, self._second))):
            part = PrefixStore(f"round/{number}", store)
            made = turn.thread.submit(self._make_group, part, timeout, loopback)
            turn.group = _Queued(self, made).wait()

    def all_gather(self, message: Tensor, lengths: Lengths | None = None) -> Pending[list[Tensor]]:
        """See `Collective`."""
        self._count_given(message, lengths_known=lengths is not None)
        count = partial(self._count_gathered, lengths_known=lengths is not None)
        to_each = [message] * self.size
        if lengths is None:
            own, ones = [torch.tensor([len(message)])] * self.size, [1] * self.size
            turn = self._first
            first = self._queue(turn, lambda: torch.cat(self._swap(turn, own, ones)).tolist())
            lengths = first.result
        found = lengths
        second = self._queue(self._second, lambda: self._swap(self._second, to_each, found()))
        return _Gathered(_Queued(self, second), count)

    def merge(
        self, parts: Sequence[Tensor], merge: Merge, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """See `Collective`; merges in a thread that owns communication."""
        self._count_merge(parts, sizes)
        own = [len(parts[self.rank])] * self.size
        first = self._queue(self._first, lambda: merge(self._swap(self._first, parts, own)))

        def give_merged() -> list[Tensor]:
            return self._swap(self._second, [first.result()] * self.size, sizes)

        return _Queued(self, self._queue(self._second, give_merged))

    def broadcast(self, tensor: Tensor) -> None:
        """See `Collective`."""
        self._count_broadcast(tensor.nbytes)

        def call() -> None:
            sent = tensor.to(self.device)
            self._second.group.broadcast([sent]).wait()
            tensor.copy_(sent)

        _Queued(self, self._queue(self._second, call)).wait()

    def name_of(self, rank: int) -> str:
        """Its number, host and process."""
        return f"worker {rank} of {self.size} ({self._names[rank]})"

    def close(self) -> None:
        """Leave the group: once all calls have been made or, where it is broken, at once."""
        broken = self._abandoned or self._failure is not None
        for turn in (self._first, self._second):
            turn.thread.shutdown(wait=not broken, cancel_futures=broken)
            turn.group = None

    def post_failure(self, sentence: str) -> None:
        """Let the others know why this worker ends before its time."""
        self._abandoned = True
        try:
            self._store.set(f"word/{self.rank}", sentence)
        except RuntimeError:  # they will at least see that it has gone
            return

    # Meeting

    def _meet(self, patience_seconds: float) -> list[str]:
        """Every worker's host and process, by rank."""
        self._store.set(f"name/{self.rank}", f"{socket.gethostname()}, process {os.getpid()}")
        names = []
        for rank in range(self.size):
            if not self._appears(f"name/{rank}", patience_seconds):
                raise UserError(
                    f"worker {rank} of {self.size} has not come within {patience_seconds:g} "
                    f"seconds, so worker {self.rank} gives up"
                )
            names.append(self._store.get(f"name/{rank}").decode())
        return names

    def _make_group(self, store: Store, timeout: timedelta, loopback: bool) -> Any:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            # Otherwise NCCL's watchdog ends the process when a worker has gone; so the call that
            # waits raises, and the roll-call can name that worker.
            os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
            nccl: Any = dist.ProcessGroupNCCL.Options()
            nccl._timeout = timeout
            return dist.ProcessGroupNCCL(store, self.rank, self.size, nccl)
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timeout
        options._devices = [gloo.create_device(hostname="127.0.0.1") if loopback else _device(gloo)]
        return gloo(store, self.rank, self.size, options)

    # Calling

    def _swap(
        self, turn: _Round, to_each: Sequence[Tensor], of_each: Sequence[int]
    ) -> list[Tensor]:
        """What every worker has for this one, of these lengths, for what this one has for each.

        Where nobody has anything, which all of them can tell, no call is made.
        """
        own = to_each[self.rank]
        if any(of_each) or any(map(len, to_each)):
            given = [0 if r == self.rank else len(piece) for r, piece in enumerate(to_each)]
            taken = [0 if r == self.rank else length for r, length in enumerate(of_each)]
            others = [p.to(self.device) for r, p in enumerate(to_each) if r != self.rank]
            sent = others[0] if len(others) == 1 else torch.cat(others)
            received = sent.new_empty(sum(taken))
            turn.group.alltoall_base(received, sent, taken, given).wait()
            pieces = list(received.to(own.device).split(taken))
        else:
            pieces = [own[:0]] * self.size
        pieces[self.rank] = own
        return pieces

    def _queue(self, turn: _Round, call: Callable[[], T]) -> Future[T]:
        ready = None
        if self.device.type == "cuda":
            ready = torch.cuda.current_stream(self.device).record_event()

        def run() -> T:
            if self._failure is not None:
                raise self._failure
            try:
                if ready is not None:
                    torch.cuda.current_stream(self.device).wait_event(ready)
                with self._busy_time:
                    found = call()
                if ready is not None:  # what NCCL finds out late, it finds out here
                    torch.cuda.current_stream(self.device).synchronize()
            except RuntimeError as error:
                self._failure = error
                raise
            return found

        return turn.thread.submit(run)

    # Roll-call

    def who_is_missing(self, error: RuntimeError) -> UserError:
        """A sentence that names the workers which do not answer."""
        if self._verdict is None:
            self._verdict = UserError(self._find_out(error))
        return self._verdict

    def _find_out(self, error: RuntimeError) -> str:
        try:
            found = self._roll_call()
        except RuntimeError as silence:
            return f"{self.name_of(self.rank)} has lost all others ({_brief(silence)})"
        if isinstance(found, str):
            return found
        if found:
            names = " and ".join(self.name_of(rank) for rank in found)
            verb = "has" if len(found) == 1 else "have"
            return f"{names} {verb} stopped answering; go on with --resume from what is saved"
        return (
            f"{self.name_of(self.rank)} has lost the connection to another worker, though all "
            f"still run ({_brief(error)}); go on with --resume from what is saved"
        )

    def _roll_call(self) -> list[int] | str:
        """Who is missing in the end or, as soon as it is known, why one of them has gone."""
        self._store.set(f"here/{self.rank}", "1")
        end = monotonic() + min(ROLL_CALL_SECONDS, self._timeout_seconds)
        missing = [rank for rank in range(self.size) if rank != self.rank]
        while True:
            missing = [rank for rank in missing if not self._store.check([f"here/{rank}"])]
            for rank in missing:
                if self._store.check([f"word/{rank}"]):
                    word = self._store.get(f"word/{rank}").decode()
                    return f"{self.name_of(rank)} has ended: {word}"
            if not missing or monotonic() > end:
                return missing
            sleep(0.05)

    def _appears(self, key: str, seconds: float) -> bool:
        end = monotonic() + seconds
        while not self._store.check([key]):
            if monotonic() > end:
                return False
            sleep(0.05)
        return True


def loopback_group(size: int, timeout_seconds: float = 30.0) -> list[C10d]:
    """The members of a group within this process, each with threads of its own, over loopback."""
    require_descriptors(size * _num_descriptors(size))
    store = HashStore()

    def member(rank: int) -> C10d:
        return C10d(store, rank, size, timeout_seconds, torch.device("cpu"), loopback=True)

    with ThreadPoolExecutor(size) as together:  # for they wait for each other
        return list(together.map(member, range(size)))


def _num_descriptors(size: int) -> int:
    """Those that Gloo opens for a worker: in each of two groups one a worker and 3 (measured), and
    one while it takes a connection."""
    return 2 * (size + 4)


class _Round:
    """A process group, and the thread that alone uses it."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collective")
        self.group: Any = None


class _BusyTime:
    """Counts the time in which any round is under way."""

    def __init__(self, collective: Collective) -> None:
        self._collective, self._lock = collective, Lock()
        self._num_rounds, self._began = 0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_rounds:
                self._began = monotonic()
            self._num_rounds += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._num_rounds -= 1
            if not self._num_rounds:
                self._collective.busy_seconds += monotonic() - self._began


class _Queued(Pending[T]):
    def __init__(self, collective: C10d, future: Future[T]) -> None:
        self._collective, self._future = collective, future

    def wait(self) -> T:
        try:
            return self._future.result()
        except CancelledError:
            raise UserError(f"worker {self._collective.rank} has left the others") from None
        except RuntimeError as error:
            raise self._collective.who_is_missing(error) from error


class _Gathered(Pending[list[Tensor]]):
    """Messages that count as received once they are waited for."""

    def __init__(
        self, queued: Pending[list[Tensor]], count: Callable[[list[Tensor]], None]
    ) -> None:
        self._queued, self._count = queued, count
        self._found: list[Tensor] | None = None
        self._lock = Lock()

    def wait(self) -> list[Tensor]:
        with self._lock:  # a thread of the group may wait, too, for the lengths of others
            if self._found is None:
                self._found = self._queued.wait()
                self._count(self._found)
            return self._found


def _device(gloo: Any) -> Any:
    """Gloo's device for other machines: of GLOO_SOCKET_IFNAME, or of this host's name."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    return gloo.create_device(interface=interface) if interface else gloo.create_default_device()


def _brief(error: RuntimeError) -> str:
    return str(error).splitlines()[0].rstrip(".")[:200]
