"""Measures this machine: the seconds of the parts of a step, and the cost of sending a byte.

It takes a few seconds and uses the threads that a worker would have. All times are means over much
longer than 100 ms, the period of a container's CPU quota, because within one period a short action
runs as if there were no quota. Codecs are timed on the CPU. Not tried on GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from math import inf
from statistics import fmean
from time import perf_counter
from typing import Any, get_args

import torch

from thinwire.config import RunConfig
from thinwire.data.batches import Batches
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.exchange.config import CodecName
from thinwire.exchange.local import Local
from thinwire.language_model import LanguageModel
from thinwire.models.contract import State
from thinwire.optim.updater import Updater
from thinwire.plan.loopback import exchange_seconds, message_seconds
from thinwire.plan.timing import mean_seconds
from thinwire.wire.codecs import make_codec

WARM_UP_STEPS = 3
LEAST_STEPS = 5
# If steps take seconds, this number of steps is enough after `OVERTIME` times the planned seconds.
LEAST_LONG_STEPS = 3
OVERTIME = 5
PARTS = ("touch", "forward", "backward", "update")
PROBE_ROWS, PROBE_WIDTH = 2000, 256
MESSAGE_BYTES, LARGE_MESSAGE_BYTES = 1 << 20, 1 << 26
# Above this, malloc takes memory from the system each time (the largest M_MMAP_THRESHOLD).
LARGE_BYTES = 32 << 20


@dataclass(frozen=True)
class Machine:
    """Times of one worker on this machine, in seconds, and the size of its steps.

    Attributes:
        touch: seconds per step to read a batch, draw a sample and gather rows.
        forward: seconds per step to compute hidden states, loss, and gradients of output rows.
        backward: seconds per step to compute the other gradients.
        update: seconds per step to update the rows and blocks that one worker's step touches.
        update_row: seconds to update one row.
        round: seconds per round of messages of a synchronous exchange, if almost nothing is sent.
        exchange_byte: seconds of a synchronous exchange per byte sent or received, by codec: to
            select, encode, send, decode and sum.
        code_byte: seconds to encode and decode one encoded byte, by codec.
        message_byte: seconds of the CPU per byte of an encrypted message between a worker and a
            server.
        large_message_byte: the same for messages larger than `LARGE_BYTES`.
        rows: number of rows that one worker's step updates, over all tables.
        tokens: number of tokens in a step of one worker.
    """

    touch: float
    forward: float
    backward: float
    update: float
    update_row: float
    round: float
    exchange_byte: dict[str, float]
    code_byte: dict[str, float]
    message_byte: float
    large_message_byte: float
    rows: float
    tokens: float

    @property
    def step(self) -> float:
        """Seconds of a whole step of one worker alone."""
        return self.touch + self.forward + self.backward + self.update


def measure(corpus: Corpus, config: RunConfig, model: LanguageModel, seconds: float) -> Machine:
    """Measure steps for about `seconds`, longer if steps are slow; then measure sending."""
    a_round, exchange_byte = exchange_seconds()
    local = _local(config, model)
    return Machine(
        **_step(corpus, config, model, local, seconds),
        update_row=_update_row(local, next(iter(model.tables().values()))),
        round=a_round,
        exchange_byte=exchange_byte,
        code_byte={name: _code_byte(name) for name in get_args(CodecName)},
        message_byte=message_seconds(MESSAGE_BYTES),
        large_message_byte=message_seconds(LARGE_MESSAGE_BYTES),
    )


def measure_again(
    machine: Machine, corpus: Corpus, config: RunConfig, model: LanguageModel, seconds: float
) -> Machine:
    """The same machine with newly measured steps, for another batch size."""
    return replace(machine, **_step(corpus, config, model, _local(config, model), seconds))


def _local(config: RunConfig, model: LanguageModel) -> Local:
    return Local(Updater.of(model.tables(), model.blocks(), config.optim))


def _step(
    corpus: Corpus, config: RunConfig, model: LanguageModel, local: Local, seconds: float
) -> dict[str, Any]:
    """The seconds of the parts of a step, and its rows and tokens, by their names in `Machine`."""
    batches = Batches(
        corpus.ids("train"),
        config.data,
        seed=config.run.seed,
        eos_id=corpus.meta.eos_id,
        num_before=model.num_before,
    )
    device = next(iter(local.updater.tables.values())).device
    now = partial(_now, device)
    state: State | None = None
    taken: list[tuple[float, ...]] = []
    num_rows, num_tokens, step = 0, 0, 0
    began = perf_counter()
    while not _enough(len(taken), spent := perf_counter() - began, seconds):
        times = [now()]
        task = model.touch(next(batches).to(device), step)
        rows = local.fetch(task.touched)
        times.append(now())
        total, state = model.loss(task, rows, state, None)
        loss = total / task.batch.num_targets
        times.append(now())
        loss.backward()
        times.append(now())
        local.push(task.touched, rows, local.updater.blocks)
        local.update()
        times.append(now())
        step += 1
        if step > (WARM_UP_STEPS if spent < seconds else 1):
            taken.append(tuple(b - a for a, b in pairwise(times)))
            num_rows += sum(len(leaf) for leaf in rows.values())
            num_tokens += task.batch.num_targets
    parts = dict(zip(PARTS, map(fmean, zip(*taken, strict=True)), strict=True))
    return {**parts, "rows": num_rows / len(taken), "tokens": num_tokens / len(taken)}


def _now(device: torch.device) -> float:
    """The time in seconds, when the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _enough(num_taken: int, spent: float, seconds: float) -> bool:
    """Whether `num_taken` steps in `spent` seconds are enough."""
    least = LEAST_STEPS if spent < OVERTIME * seconds else LEAST_LONG_STEPS
    return spent > seconds and num_taken >= least


def parse_rate(text: str) -> float:
    """Bytes per second of a rate such as 1gbit, 100mbit or 2.5gbit.

    Raises:
        UserError: `text` is not such a rate.
    """
    units = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
    for unit, factor in units.items():
        number = text.lower().removesuffix("/s").removesuffix(unit)
        if text.lower().removesuffix("/s").endswith(unit):
            try:
                rate = float(number) * factor / 8
            except ValueError:
                break
            if 0 < rate < inf:
                return rate
    raise UserError(f"--link is {text!r}, and must be a rate such as 100mbit or 1gbit")


def _update_row(local: Local, table: torch.Tensor) -> float:
    """Seconds to update one row.

    As in training, each update uses other rows, so that they are not in the CPU's cache. The
    gradient is zero, which takes the same time and changes almost nothing.
    """
    num_rows = min(PROBE_ROWS, len(table))
    gradient = table.new_zeros(num_rows, *table.shape[1:])
    spread = torch.arange(num_rows, device=table.device) * (len(table) // num_rows)
    offsets = count()

    def update() -> None:
        ids = (spread + next(offsets)).remainder(len(table)).sort().values
        local.updater.row_optimizer.update_rows(table, ids, gradient)
        _now(table.device)

    return mean_seconds(update) / num_rows


def _code_byte(name: str) -> float:
    codec = make_codec(name)
    values = torch.randn(PROBE_ROWS, PROBE_WIDTH, generator=torch.Generator().manual_seed(1))
    both = mean_seconds(lambda: codec.decode(codec.encode(values, 1), values.shape))
    return both / codec.num_bytes(values.shape)
