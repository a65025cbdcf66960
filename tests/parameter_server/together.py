"""An asynchronous run in one process: its servers and workers are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from thinwire.config import RunConfig
from thinwire.parameter_server.follower import serve_shard
from thinwire.parameter_server.serve import serve
from thinwire.parameter_server.worker import work
from thinwire.transport.messages import Connection, InProcessListener


class Together:
    """Servers and workers, each a thread; the first server is the thread that calls."""

    def __init__(self, data: Path, out: Path, config: RunConfig, num_shards: int = 1) -> None:
        self.data, self.out, self.config = data, out, config
        self.listeners = [InProcessListener() for _ in range(num_shards)]
        self.threads: list[threading.Thread] = []
        self.why: list[str] = []
        self.errors: list[BaseException] = []
        self.connection: Callable[[str, Connection, int], Connection] = (
            lambda name, connection, index: connection
        )
        """Makes a worker's connection to server `index` another one."""

    def start(self, target: Callable[[], object]) -> None:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        self.threads.append(thread)

    def worker(self, name: str) -> None:
        connections = [
            self.connection(name, listener.connection(), index)
            for index, listener in enumerate(self.listeners)
        ]
        self.why.append(work(self.data, connections, name=name, threads=1))

    def run(self, num_workers: int = 1, *, resume: bool = False) -> None:
        count = len(self.listeners)
        for index in range(1, count):
            self.start(
                lambda index=index: serve_shard(
                    self.data,
                    self.config,
                    index,
                    count,
                    listener=lambda _: self.listeners[index],
                    warn=lambda sentence: None,
                )
            )
        for number in range(num_workers):
            self.start(lambda number=number: self.worker(f"worker {number}"))
        try:
            serve(
                self.data,
                self.out,
                self.config,
                listener=lambda max_bytes: self.listeners[0],
                followers=[listener.connection() for listener in self.listeners[1:]],
                resume=resume,
            )
        finally:
            for thread in self.threads:
                thread.join(60.0)
        assert not any(thread.is_alive() for thread in self.threads), self.errors


def together(
    data: Path,
    out: Path,
    config: RunConfig,
    num_workers: int = 1,
    num_shards: int = 1,
    resume: bool = False,
) -> Together:
    found = Together(data, out, config, num_shards)
    found.run(num_workers, resume=resume)
    assert found.errors == []
    return found
