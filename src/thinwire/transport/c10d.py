"""Collectives of `torch.distributed`: Gloo between CPUs, NCCL between GPUs.

A call has up to two rounds. The first sends what the second needs: the lengths of messages, or the
parts to reduce. The second sends messages. Each round has its own thread and process group, and
performs the calls in the order in which they were made, so two workers cannot deadlock. A message
waits only for earlier messages of the same round, and the thread that computes waits for none. On
GPUs, where two groups must not run at the same time, both rounds share one thread.

When a call fails or takes too long, the workers hold a roll-call through the store, and the error
names the workers that do not answer. Not tried on GPUs.

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
from thinwire.transport.collective import Collective, Lengths, Pending, Reduce
from thinwire.transport.descriptors import require_descriptors
from thinwire.transport.timeouts import RENDEZVOUS_SECONDS, ROLL_CALL_SECONDS

T = TypeVar("T")


class C10d(Collective):
    """One worker of a process group.

    Args:
        store: the store through which the workers find each other. It must belong to this attempt
            of the run alone.
        rank: rank of this worker, from 0.
        size: number of workers.
        timeout_seconds: longest wait for the other workers.
        device: device of the model. On a GPU the process group is NCCL's, otherwise Gloo's.
        loopback: accept connections from this machine only (Gloo).
        rendezvous_seconds: shortest time to wait for the other workers at the start.

    Raises:
        UserError: a worker did not appear in time.
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
        rendezvous_seconds: float = RENDEZVOUS_SECONDS,
    ) -> None:
        super().__init__(rank, size)
        self._store = store
        self._timeout_seconds = timeout_seconds
        # The memory that the group reads and writes: NCCL needs the GPU's, Gloo the host's.
        self.device = device if device.type == "cuda" else torch.device("cpu")
        if self.device.type == "cpu":
            require_descriptors(_num_descriptors(size))
        first = _Round()
        self._first, self._second = first, first if device.type == "cuda" else _Round()
        self._busy_time = _BusyTime(self)
        self._failure: RuntimeError | None = None
        """The error of the first call that failed. No call is made after it."""
        self._diagnosis: UserError | None = None
        self._abandoned = False
        timeout = timedelta(seconds=timeout_seconds)
        store.set_timeout(timeout)
        self._names = self._rendezvous(max(timeout_seconds, rendezvous_seconds))
        for number, round_ in enumerate(dict.fromkeys((self._first, self._second))):
            part = PrefixStore(f"round/{number}", store)
            made = round_.thread.submit(self._make_group, part, timeout, loopback)
            round_.group = _Queued(self, made).wait()

    def all_gather(self, message: Tensor, lengths: Lengths | None = None) -> Pending[list[Tensor]]:
        """See `Collective`."""
        self._count_given(message, lengths_known=lengths is not None)
        count = partial(self._count_gathered, lengths_known=lengths is not None)
        to_each = [message] * self.size
        if lengths is None:
            own, ones = [torch.tensor([len(message)])] * self.size, [1] * self.size
            first = self._queue(
                self._first, lambda: torch.cat(self._all_to_all(self._first, own, ones)).tolist()
            )
            lengths = first.result
        known = lengths
        second = self._queue(self._second, lambda: self._all_to_all(self._second, to_each, known()))
        return _Gathered(_Queued(self, second), count)

    def all_reduce(
        self, parts: Sequence[Tensor], reduce: Reduce, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """See `Collective`; `reduce` runs in a thread that owns communication."""
        self._count_all_reduce(parts, sizes)
        own = [len(parts[self.rank])] * self.size
        first = self._queue(self._first, lambda: reduce(self._all_to_all(self._first, parts, own)))

        def send_result() -> list[Tensor]:
            return self._all_to_all(self._second, [first.result()] * self.size, sizes)

        return _Queued(self, self._queue(self._second, send_result))

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
        """Leave the group: at once if it is broken, otherwise when all calls are done."""
        broken = self._abandoned or self._failure is not None
        for round_ in (self._first, self._second):
            round_.thread.shutdown(wait=not broken, cancel_futures=broken)
            round_.group = None

    def post_failure(self, sentence: str) -> None:
        """Tell the other workers why this one ends before the run does."""
        self._abandoned = True
        try:
            self._store.set(f"word/{self.rank}", sentence)
        except RuntimeError:  # they will at least see that it has gone
            return

    # Rendezvous

    def _rendezvous(self, timeout_seconds: float) -> list[str]:
        """Wait for all workers; returns the host and process of each, by rank."""
        self._store.set(f"name/{self.rank}", f"{socket.gethostname()}, process {os.getpid()}")
        names = []
        for rank in range(self.size):
            if not self._wait_for_key(f"name/{rank}", timeout_seconds):
                raise UserError(
                    f"worker {rank} of {self.size} has not come within {timeout_seconds:g} "
                    f"seconds, so worker {self.rank} gives up"
                )
            names.append(self._store.get(f"name/{rank}").decode())
        return names

    def _make_group(self, store: Store, timeout: timedelta, loopback: bool) -> Any:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            # Otherwise NCCL's watchdog ends the process when a worker has gone. With this, the call
            # that waits raises an error, and the roll-call can name that worker.
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

    def _all_to_all(
        self, round_: _Round, to_each: Sequence[Tensor], of_each: Sequence[int]
    ) -> list[Tensor]:
        """Send one message to each worker; returns the message of each worker for this one.

        Args:
            round_: the round whose process group is used.
            to_each: the message for each worker, by rank.
            of_each: the length of the message from each worker, by rank.

        If all messages are empty, which every worker knows, no call is made.
        """
        own = to_each[self.rank]
        if any(of_each) or any(map(len, to_each)):
            given = [0 if r == self.rank else len(piece) for r, piece in enumerate(to_each)]
            taken = [0 if r == self.rank else length for r, length in enumerate(of_each)]
            others = [p.to(self.device) for r, p in enumerate(to_each) if r != self.rank]
            sent = others[0] if len(others) == 1 else torch.cat(others)
            received = sent.new_empty(sum(taken))
            round_.group.alltoall_base(received, sent, taken, given).wait()
            pieces = list(received.to(own.device).split(taken))
        else:
            pieces = [own[:0]] * self.size
        pieces[self.rank] = own
        return pieces

    def _queue(self, round_: _Round, call: Callable[[], T]) -> Future[T]:
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
                if ready is not None:  # errors that NCCL reports late are raised here
                    torch.cuda.current_stream(self.device).synchronize()
            except RuntimeError as error:
                self._failure = error
                raise
            return found

        return round_.thread.submit(run)

    # Roll-call

    def diagnose(self, error: RuntimeError) -> UserError:
        """The error to raise after a failed call: it names the workers that do not answer."""
        if self._diagnosis is None:
            self._diagnosis = UserError(self._describe_failure(error))
        return self._diagnosis

    def _describe_failure(self, error: RuntimeError) -> str:
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
        """The ranks that do not answer; or, if a missing worker has posted why it ended, that."""
        self._store.set(f"here/{self.rank}", "1")
        end = monotonic() + min(ROLL_CALL_SECONDS, self._timeout_seconds)
        missing = [rank for rank in range(self.size) if rank != self.rank]
        while True:
            missing = [rank for rank in missing if not self._store.check([f"here/{rank}"])]
            for rank in missing:
                if self._store.check([f"word/{rank}"]):
                    message = self._store.get(f"word/{rank}").decode()
                    return f"{self.name_of(rank)} has ended: {message}"
            if not missing or monotonic() > end:
                return missing
            sleep(0.05)

    def _wait_for_key(self, key: str, seconds: float) -> bool:
        end = monotonic() + seconds
        while not self._store.check([key]):
            if monotonic() > end:
                return False
            sleep(0.05)
        return True


def loopback_group(size: int, timeout_seconds: float = 30.0) -> list[C10d]:
    """The workers of a group within this process, over loopback, each with its own threads."""
    require_descriptors(size * _num_descriptors(size))
    store = HashStore()

    def worker(rank: int) -> C10d:
        return C10d(store, rank, size, timeout_seconds, torch.device("cpu"), loopback=True)

    with ThreadPoolExecutor(size) as pool:  # all at once, because they wait for each other
        return list(pool.map(worker, range(size)))


def _num_descriptors(size: int) -> int:
    """The descriptors that Gloo opens for one worker.

    In each of the two groups it opens one per worker and 3 more (measured), and another one while
    it accepts a connection.
    """
    return 2 * (size + 4)


class _Round:
    """A process group, and the only thread that uses it."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collective")
        self.group: Any = None


class _BusyTime:
    """Counts the seconds in which any round is running."""

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
            raise self._collective.diagnose(error) from error


class _Gathered(Pending[list[Tensor]]):
    """Messages that are counted as received when they have been waited for."""

    def __init__(
        self, queued: Pending[list[Tensor]], count: Callable[[list[Tensor]], None]
    ) -> None:
        self._queued, self._count = queued, count
        self._found: list[Tensor] | None = None
        self._lock = Lock()

    def wait(self) -> list[Tensor]:
        with self._lock:  # a thread of the group may wait too, for the lengths of other messages
            if self._found is None:
                self._found = self._queued.wait()
                self._count(self._found)
            return self._found


def _device(gloo: Any) -> Any:
    """Gloo's network device: that of GLOO_SOCKET_IFNAME, or else that of this host's name."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    return gloo.create_device(interface=interface) if interface else gloo.create_default_device()


def _brief(error: RuntimeError) -> str:
    return str(error).splitlines()[0].rstrip(".")[:200]
