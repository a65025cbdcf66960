"""Synchronous data parallelism as PyTorch has it: all gradients are averaged at every step.

`ddp` sends them as they are, `ddp-bf16` in half the bytes, `powersgd` as two factors of rank 4
(Vogels, Karimireddy, Jaggi 2019, arXiv 1905.13727) whose error is kept and added to the next step.
The hooks are PyTorch's own. Two things make them work over Gloo: DistributedDataParallel takes
`bf16_compress_hook` under another name only, for by its own it asks for NCCL; and PowerSGD, whose
messages of different buckets overtake one another there, gets one bucket.
"""

# No `from __future__ import annotations`: DistributedDataParallel looks at those of a hook.

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from benchmarks.rivals.method import Method, Updater, ring_bytes

RANK = 4
FP32_BYTES, BF16_BYTES = 4, 2
ONE_BUCKET_MB = 1 << 14


class DDP(Method):
    """DistributedDataParallel, with one of its own hooks where one is named.

    Args:
        model: starts from the same weights on every device.
        updater: of all weights.
        kind: ddp, ddp-bf16 or powersgd.
        dense_steps: of powersgd: so many steps are not compressed; PyTorch suggests a tenth of all.
    """

    def __init__(self, model: nn.Module, updater: Updater, kind: str, dense_steps: int) -> None:
        ddp = DistributedDataParallel(
            model,
            bucket_cap_mb=ONE_BUCKET_MB if kind == "powersgd" else None,
            gradient_as_bucket_view=True,
            init_sync=False,
        )
        self.module, self._updater = ddp, updater
        self._num_weights = sum(p.numel() for p in model.parameters())
        self._value_bytes = BF16_BYTES if kind == "ddp-bf16" else FP32_BYTES
        self._power: PowerSGDState | None = None
        if kind == "ddp-bf16":
            ddp.register_comm_hook(dist.group.WORLD, half_the_bytes)
        elif kind == "powersgd":
            self.dense_steps = dense_steps
            self._power = PowerSGDState(
                None,
                matrix_approximation_rank=RANK,
                start_powerSGD_iter=dense_steps,
                use_error_feedback=True,
                warm_start=True,
            )
            ddp.register_comm_hook(self._power, powerSGD_hook)
        self._steps = self._num_compressed = 0

    def step(self) -> None:
        """The gradients are averaged already: the backward pass has done it."""
        self._steps += 1
        self.bytes_sent += ring_bytes(self._value_bytes * self._num_sent())
        self._updater.step()

    def _num_sent(self) -> int:
        """Numbers that this step has sent."""
        if self._power is None or self._steps <= self.dense_steps:
            return self._num_weights
        before = self._num_compressed
        self._num_compressed = self._power.total_numel_after_compression
        return self._num_compressed - before


def half_the_bytes(group: dist.ProcessGroup, bucket: Any) -> Future[Tensor]:
    """PyTorch's hook, by another name."""
    return bf16_compress_hook(group, bucket)
