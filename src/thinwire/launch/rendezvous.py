"""How workers that hold the whole model find each other.

On one machine they use a store in a file, and connect over loopback. Under torchrun they use its
store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from thinwire.config import RunConfig
from thinwire.console import print_line
from thinwire.cores import num_threads
from thinwire.errors import UserError, reason_of
from thinwire.launch.attempt import agree_on_attempt
from thinwire.runs.device import find_device
from thinwire.transport.alone import Alone
from thinwire.transport.c10d import C10d
from thinwire.transport.collective import Collective
from thinwire.transport.timeouts import RENDEZVOUS_SECONDS


class TorchrunRendezvous:
    """The rendezvous of the workers that torchrun has started.

    Attributes:
        config: the settings, with the actual number of workers and this worker's threads.
        rank: rank of this worker.
        attempt: the name of this attempt of the run, equal on all workers.
        restarted: whether torchrun has restarted the workers.
    """

    def __init__(self, config: RunConfig) -> None:
        self.rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        threads = num_threads(config.run.threads, local_size)
        self.config = replace(config, run=replace(config.run, workers=size, threads=threads))
        self._store, _, _ = next(rendezvous("env://", self.rank, size))
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        timeout_seconds = max(RENDEZVOUS_SECONDS, config.exchange.timeout_seconds)
        store = PrefixStore("thinwire", self._store)
        self.attempt, self.restarted = agree_on_attempt(
            store, self.rank, size, restarts, timeout_seconds
        )
        self._one_machine = local_size == size
        if self.rank == 0 and not self._one_machine:
            print_line(
                "The workers talk over the network, and PyTorch's collectives neither prove who "
                "speaks nor encrypt: on a network that is not yours alone, use a tunnel.",
            )

    def collective(self, purpose: str) -> AbstractContextManager[Collective]:
        """A collective of all workers. Each purpose may be used once per attempt."""
        if self.config.run.workers == 1:
            return nullcontext(Alone())
        # A new prefix for each attempt: workers must not find the addresses of an earlier attempt
        # (PyTorch issue 135712).
        store = PrefixStore(f"thinwire-{self.attempt}-{purpose}", self._store)
        return joined(self.config, store, self.rank, loopback=self._one_machine)


@contextmanager
def joined(config: RunConfig, store: Store, rank: int, *, loopback: bool) -> Iterator[Collective]:
    """A collective of all workers. A worker that leaves by an error tells the others why."""
    device = find_device(config.run.device)
    W, timeout_seconds = config.run.workers, config.exchange.timeout_seconds
    collective = C10d(store, rank, W, timeout_seconds, device, loopback=loopback)
    try:
        yield collective
    except UserError as error:
        collective.post_failure(str(error))
        raise
    except OSError as error:
        collective.post_failure(reason_of(error))
        raise UserError(reason_of(error)) from error
    finally:
        collective.close()
