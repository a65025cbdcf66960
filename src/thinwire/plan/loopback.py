"""Measures the processor time of exchanges and messages, over loopback within this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from thinwire.exchange.config import CodecName, ExchangeConfig
from thinwire.exchange.sync import Sync
from thinwire.optim.rowwise import RowSGD
from thinwire.optim.updater import Updater
from thinwire.plan.timing import mean_seconds
from thinwire.plan.traffic import sync_rounds
from thinwire.touched import Touched
from thinwire.training.agreement import STATUS_NUMBERS
from thinwire.transport.c10d import C10d, loopback_group
from thinwire.transport.keys import Key
from thinwire.transport.zeromq import ZeroMQConnection, ZeroMQListener
from thinwire.wire.frames import Frame, pack, unpack

# Two workers exchange a block and rows of two tables. Each touches `NUM_ROWS` unshared rows of both
# tables, and `NUM_ROWS` shared rows of the output.
NUM_ROWS, WIDTH, BLOCK_SHAPE = 1000, 256, (1024, 512)


def exchange_seconds() -> tuple[float, dict[str, float]]:
    """The seconds that a worker of a synchronous exchange of two workers spends.

    Returns:
        Seconds per round of messages and, by codec, seconds per byte sent or received.
    """
    workers = loopback_group(2)
    try:
        least, _ = _exchange(workers, "fp32", 1, (1, 1))
        byte = {}
        for codec in get_args(CodecName):
            seconds, num_bytes = _exchange(workers, codec, NUM_ROWS, BLOCK_SHAPE)
            # A byte costs something, even if noise makes the difference 0 or less.
            byte[codec] = max(seconds - least, 0.1 * seconds) / num_bytes
        return least / sync_rounds(num_sums=2, num_gathers=2), byte
    finally:
        for worker in workers:
            worker.close()


def message_seconds(num_bytes: int) -> float:
    """The seconds that a sender or a receiver spends per byte of an encrypted message."""
    content, key = torch.zeros(num_bytes, dtype=torch.uint8), Key.new()
    listener = ZeroMQListener("127.0.0.1:0", key)
    connection = ZeroMQConnection(listener.address, key)

    def transfer() -> None:
        connection.send(pack(Frame(0, parts=(content,))))
        while (received := listener.receive(1.0)) is None:
            pass
        unpack(received[1])

    try:
        return mean_seconds(transfer) / 2 / num_bytes
    finally:
        connection.close()
        listener.close()


class _Worker(Updater):
    """A worker that has the same gradients at every step, and changes no parameters."""

    def __init__(
        self, collective: C10d, codec: CodecName, num_rows: int, block_shape: tuple[int, ...]
    ) -> None:
        tables = {name: nn.Parameter(torch.zeros(3 * num_rows, WIDTH)) for name in ("in", "out")}
        block = nn.Parameter(torch.zeros(block_shape))
        rows, dense = RowSGD(tables.values(), 1.0), torch.optim.SGD([block], 1.0)
        super().__init__(tables, {"block": block}, rows, dense, clip=0.0)
        # Half of each worker's unshared rows are also touched by the other worker.
        own = torch.arange(num_rows) + num_rows + collective.rank * num_rows // 2
        both = torch.cat([torch.arange(num_rows), own])
        self.touched = Touched({"in": own, "out": both}, num_shared={"out": num_rows})
        noise = torch.Generator().manual_seed(1 + collective.rank)
        self.block_gradient = torch.randn(block_shape, generator=noise)
        self.leaves = {}
        for name, ids in (("in", own), ("out", both)):
            self.leaves[name] = torch.zeros(len(ids), WIDTH, requires_grad=True)
            self.leaves[name].grad = torch.randn(len(ids), WIDTH, generator=noise)
        config = ExchangeConfig(codec=codec)
        self.exchange = Sync(self, collective, config, seed=1)

    def rows(self, touched: Touched) -> dict[str, Tensor]:
        """The rows, which have gradients already."""
        return self.leaves

    def apply(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> float:
        """Do nothing: only the exchange of gradients is timed."""
        return 0.0

    def push(self) -> None:
        """Send the same gradients again."""
        self.blocks["block"].grad = self.block_gradient
        self.exchange.push(self.touched, self.leaves, self.blocks)


def _exchange(
    workers: Sequence[C10d], codec: CodecName, num_rows: int, block_shape: tuple[int, ...]
) -> tuple[float, int]:
    """The seconds and the bytes, sent and received, of an exchange, for each of two workers."""
    first, second = (_Worker(worker, codec, num_rows, block_shape) for worker in workers)

    def exchange() -> None:
        for worker in (first, second):
            worker.exchange.announce(worker.touched)
        for worker in (first, second):
            worker.exchange.fetch(worker.touched)
        first.push()
        second.push()
        second.exchange.update()
        first.exchange.update()
        statuses = [w.exchange.total([0.0] * STATUS_NUMBERS) for w in (first, second)]
        for status in statuses:
            status.wait()

    meter = workers[0].meter
    before = meter.sent + meter.received
    exchange()
    num_bytes = meter.sent + meter.received - before
    return mean_seconds(exchange) / 2, num_bytes
