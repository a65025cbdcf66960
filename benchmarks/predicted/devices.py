"""What a worker is: a core of this machine, or a GPU by its published figures."""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.config import RunConfig
from thinwire.language_model import LanguageModel
from thinwire.plan.forecast import Link
from thinwire.plan.machine import Machine

UTILISATION = 0.4
LATENCY_SECONDS = Link(1.0).latency_seconds


@dataclass(frozen=True)
class Gpu:
    """A GPU by its published figures.

    Attributes:
        name: of the product.
        flop_per_second: peak, fp32 without tensor cores.
        bus_bytes_per_second: PCI Express, one way.
        source: of these figures.
        rates: of links, beside those that are predicted for every device.
        latency_seconds: for a message to arrive; assumed.
    """

    name: str
    flop_per_second: float
    bus_bytes_per_second: float
    source: str
    rates: tuple[str, ...] = ()
    latency_seconds: float = LATENCY_SECONDS


GPUS = (
    Gpu(
        "GTX 1080",
        8.9e12,
        15.75e9,
        "NVIDIA: 2,560 cores x 2 operations x 1.733 GHz (boost), fp32; PCIe 3.0 x16",
    ),
    Gpu(
        "H100",
        67e12,
        63e9,
        "NVIDIA's data sheet of the H100 SXM: fp32; PCIe 5.0 x16",
        ("400gbit",),
        1e-5,
    ),
)


@dataclass(frozen=True)
class Device:
    """What each worker, and each server, is; and the rates of links to predict for."""

    name: str
    machine: Machine
    rates: tuple[str, ...]
    latency_seconds: float = LATENCY_SECONDS

    def link(self, bytes_per_second: float) -> Link:
        """A link of this rate."""
        return Link(bytes_per_second, self.latency_seconds)


def flop_per_token(model: LanguageModel, config: RunConfig) -> float:
    """2 operations a multiply-add, forward once and backward twice: the body and the sample."""
    body = sum(block.numel() for block in model.blocks().values() if block.dim() == 2)
    return 3 * 2 * (body + config.loss.samples * config.model.width)


def on_gpu(core: Machine, gpu: Gpu, flop: float) -> Machine:
    """Times shorter by the ratio of the rates of arithmetic; what is sent crosses the bus.

    Encrypting messages stays the processor's, and NCCL's rounds take no time but their latency.
    """
    rate = flop * core.tokens / (core.forward + core.backward)
    ratio = UTILISATION * gpu.flop_per_second / rate
    over_bus = 1.0 / gpu.bus_bytes_per_second
    return Machine(
        touch=core.touch / ratio,
        forward=core.forward / ratio,
        backward=core.backward / ratio,
        update=core.update / ratio,
        update_row=core.update_row / ratio,
        round=0.0,
        exchange_byte={name: s / ratio + over_bus for name, s in core.exchange_byte.items()},
        code_byte={name: s / ratio for name, s in core.code_byte.items()},
        message_byte=core.message_byte + over_bus,
        large_message_byte=core.large_message_byte + over_bus,
        rows=core.rows,
        tokens=core.tokens,
    )
