"""How workers that hold the whole model find each other.

On one machine they meet through a file and stay on loopback. Under torchrun they meet through its
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
from thinwire.launch.attempt import agreed_attempt
from thinwire.runs.device import find_device
from thinwire.transport.alone import Alone
from thinwire.transport.c10d import C10d
from thinwire.transport.collective import Collective
from thinwire.transport.timeouts import MEETING_SECONDS


class TorchrunMeeting:
    """Where the workers of torchrun find each other.

    Attributes:
        config: the settings, with as many workers as there are, and this one's threads.
        rank: this worker.
        attempt: a name of this attempt of the run, the same on all workers.
        restarted: whether torchrun has started all again.
    """

    def __init__(self, config: RunConfig) -> None:
        self.rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        threads = num_threads(config.run.threads, here)
        self.config = replace(config, run=replace(config.run, workers=size, threads=threads))
        self._store, _, _ = next(rendezvous("env://", self.rank, size))
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        patience_seconds = max(MEETING_SECONDS, config.exchange.timeout_seconds)
        store = PrefixStore("thinwire", self._store)
        self.attempt, self.restarted = agreed_attempt(
            store, self.rank, size, restarts, patience_seconds
        )
        self._alone = here == size
        if self.rank == 0 and not self._alone:
            print_line(
                "The workers talk over the network, and PyTorch's collectives neither prove who "
                "speaks nor encrypt: on a network that is not yours alone, use a tunnel.",
            )

    def team(self, purpose: str) -> AbstractContextManager[Collective]:
        """All workers, to do something together; once for each purpose."""
        if self.config.run.workers == 1:
            return nullcontext(Alone())
        # Its own for each attempt: a dead one's addresses must not be found (PyTorch issue 135712).
        store = PrefixStore(f"thinwire-{self.attempt}-{purpose}", self._store)
        return joined(self.config, store, self.rank, loopback=self._alone)


@contextmanager
def joined(config: RunConfig, store: Store, rank: int, *, loopback: bool) -> Iterator[Collective]:
    """All workers; one that leaves them by an error lets them know why."""
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
