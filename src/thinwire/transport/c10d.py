"""Collectives of `torch.distributed`: Gloo between CPUs, NCCL between GPUs.

One thread of each worker owns communication: calls are queued, and made one after the other in the
order in which they were queued, so that two workers can never wait for each other crosswise. The
thread that computes goes on meanwhile.

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
from time import monotonic, sleep
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Store

from thinwire.errors import UserError
from thinwire.transport.collective import Collective, Merge, Pending
from thinwire.transport.patience import MEETING_SECONDS, ROLL_CALL_SECONDS

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
        self._owner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collective")
        self._failure: RuntimeError | None = None
        """Of the first call that failed; none is made after it."""
        self._verdict: UserError | None = None
        self._abandoned = False
        timeout = timedelta(seconds=timeout_seconds)
        store.set_timeout(timeout)
        self._names = self._meet(max(timeout_seconds, meeting_seconds))
        self._group: Any = self._queue(lambda: self._make_group(timeout, loopback)).wait()

    def all_reduce(self, tensor: Tensor) -> Pending[Tensor]:
        """See `Collective`; a tensor that lies where the group needs it is overwritten."""
        self._count_all_reduce(tensor.nbytes)

        def call() -> Tensor:
            summed = tensor.to(self.device)
            self._group.allreduce([summed]).wait()
            return summed.to(tensor.device)

        return self._queue(call)

    def all_gather(self, message: Tensor) -> Pending[list[Tensor]]:
        """See `Collective`; the lengths go first."""
        self._count_given(message)

        def call() -> list[Tensor]:
            return self._swap([message] * self.size, self._lengths(len(message)))

        return _Gathered(self._queue(call), self._count_gathered)

    def merge(
        self, parts: Sequence[Tensor], merge: Merge, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """See `Collective`; merges in the thread that owns communication."""
        self._count_merge(parts, sizes)

        def call() -> list[Tensor]:
            merged = merge(self._swap(parts, [len(parts[self.rank])] * self.size))
            return self._swap([merged] * self.size, sizes)

        return self._queue(call)

    def broadcast(self, tensor: Tensor) -> None:
        """See `Collective`."""
        self._count_broadcast(tensor.nbytes)

        def call() -> None:
            sent = tensor.to(self.device)
            self._group.broadcast([sent]).wait()
            tensor.copy_(sent)

        self._queue(call).wait()

    def name_of(self, rank: int) -> str:
        """Its number, host and process."""
        return f"worker {rank} of {self.size} ({self._names[rank]})"

    def close(self) -> None:
        """Leave the group: once all calls have been made or, where it is broken, at once."""
        broken = self._abandoned or self._failure is not None
        self._owner.shutdown(wait=not broken, cancel_futures=broken)
        self._group = None

    def leave_word(self, sentence: str) -> None:
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

    def _make_group(self, timeout: timedelta, loopback: bool) -> Any:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            nccl: Any = dist.ProcessGroupNCCL.Options()
            nccl._timeout = timeout
            return dist.ProcessGroupNCCL(self._store, self.rank, self.size, nccl)
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timeout
        options._devices = [gloo.create_device(hostname="127.0.0.1") if loopback else _device(gloo)]
        return gloo(self._store, self.rank, self.size, options)

    # Calling

    def _lengths(self, length: int) -> list[int]:
        own = torch.tensor([length], device=self.device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        self._group.allgather([found], [own]).wait()
        return [int(n) for n in found]

    def _swap(self, to_each: Sequence[Tensor], of_each: Sequence[int]) -> list[Tensor]:
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
            self._group.alltoall_base(received, sent, taken, given).wait()
            pieces = list(received.to(own.device).split(taken))
        else:
            pieces = [own[:0]] * self.size
        pieces[self.rank] = own
        return pieces

    def _queue(self, call: Callable[[], T]) -> Pending[T]:
        ready = None
        if self.device.type == "cuda":
            ready = torch.cuda.current_stream(self.device).record_event()

        def run() -> T:
            if ready is not None:
                torch.cuda.current_stream(self.device).wait_event(ready)
            if self._failure is not None:
                raise self._failure
            began = monotonic()
            try:
                found = call()
            except RuntimeError as error:
                self._failure = error
                raise
            self.busy_seconds += monotonic() - began
            if ready is not None:
                torch.cuda.current_stream(self.device).synchronize()
            return found

        return _Queued(self, self._owner.submit(run))

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
    store = HashStore()

    def member(rank: int) -> C10d:
        return C10d(store, rank, size, timeout_seconds, torch.device("cpu"), loopback=True)

    with ThreadPoolExecutor(size) as together:  # for they wait for each other
        return list(together.map(member, range(size)))


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

    def wait(self) -> list[Tensor]:
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
