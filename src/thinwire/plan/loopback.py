"""What workers and servers spend on one another, timed over loopback within this process."""

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
from thinwire.training.agreement import STATEMENT_NUMBERS
from thinwire.transport.c10d import C10d, loopback_group
from thinwire.transport.keys import Key
from thinwire.transport.zeromq import ZeroMQConnection, ZeroMQListener
from thinwire.wire.frames import Frame, pack, unpack

# Two workers exchange rows of two tables, as many shared ones of the output as each has of its own
# in both, and a block.
NUM_ROWS, WIDTH, BLOCK_SHAPE = 1000, 256, (1024, 512)


def exchange_seconds() -> tuple[float, dict[str, float]]:
    """Of two workers that exchange gradients with each other, as synchronous ones do.

    What one of them spends on a round of messages and, by codec, on a byte that it sends or
    receives.
    """
    members = loopback_group(2)
    try:
        least, _ = _exchange(members, "fp32", 1, (1, 1))
        byte = {}
        for codec in get_args(CodecName):
            seconds, num_bytes = _exchange(members, codec, NUM_ROWS, BLOCK_SHAPE)
            # Whatever noise says, a byte costs something.
            byte[codec] = max(seconds - least, 0.1 * seconds) / num_bytes
        return least / sync_rounds(num_sums=2, num_gathers=2), byte
    finally:
        for member in members:
            member.close()


def message_seconds(num_bytes: int) -> float:
    """For a byte of an encrypted message; of its sender or its receiver."""
    content, key = torch.zeros(num_bytes, dtype=torch.uint8), Key.new()
    listener = ZeroMQListener("127.0.0.1:0", key)
    line = ZeroMQConnection(listener.address, key)

    def pass_on() -> None:
        line.send(pack(Frame(0, parts=(content,))))
        while (received := listener.receive(1.0)) is None:
            pass
        unpack(received[1])

    try:
        return mean_seconds(pass_on) / 2 / num_bytes
    finally:
        line.close()
        listener.close()


class _Worker(Updater):
    """One that has the same gradients at every step, and changes nothing."""

    def __init__(
        self, member: C10d, codec: CodecName, num_rows: int, block_shape: tuple[int, ...]
    ) -> None:
        tables = {name: nn.Parameter(torch.zeros(3 * num_rows, WIDTH)) for name in ("in", "out")}
        block = nn.Parameter(torch.zeros(block_shape))
        rows, dense = RowSGD(tables.values(), 1.0), torch.optim.SGD([block], 1.0)
        super().__init__(tables, {"block": block}, rows, dense, clip=0.0)
        # Half of each worker's own rows are the other's, too.
        own = torch.arange(num_rows) + num_rows + member.rank * num_rows // 2
        both = torch.cat([torch.arange(num_rows), own])
        self.touched = Touched({"in": own, "out": both}, num_shared={"out": num_rows})
        noise = torch.Generator().manual_seed(1 + member.rank)
        self.block_gradient = torch.randn(block_shape, generator=noise)
        self.leaves = {}
        for name, ids in (("in", own), ("out", both)):
            self.leaves[name] = torch.zeros(len(ids), WIDTH, requires_grad=True)
            self.leaves[name].grad = torch.randn(len(ids), WIDTH, generator=noise)
        config = ExchangeConfig(codec=codec)
        self.exchange = Sync(self, member, config, seed=1)

    def rows(self, touched: Touched) -> dict[str, Tensor]:
        """The rows that have gradients already."""
        return self.leaves

    def apply(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> float:
        """Nothing: what is timed is how gradients come here."""
        return 0.0

    def push(self) -> None:
        """Let the same gradients go again."""
        self.blocks["block"].grad = self.block_gradient
        self.exchange.push(self.touched, self.leaves, self.blocks)


def _exchange(
    members: Sequence[C10d], codec: CodecName, num_rows: int, block_shape: tuple[int, ...]
) -> tuple[float, int]:
    """Seconds and bytes, sent and received, that an exchange takes each of two workers."""
    first, second = (_Worker(member, codec, num_rows, block_shape) for member in members)

    def exchange() -> None:
        for worker in (first, second):
            worker.exchange.announce(worker.touched)
        for worker in (first, second):
            worker.exchange.fetch(worker.touched)
        first.push()
        second.push()
        second.exchange.update()
        first.exchange.update()
        accounts = [w.exchange.total([0.0] * STATEMENT_NUMBERS) for w in (first, second)]
        for account in accounts:
            account.wait()

    meter = members[0].meter
    before = meter.sent + meter.received
    exchange()
    num_bytes = meter.sent + meter.received - before
    return mean_seconds(exchange) / 2, num_bytes
