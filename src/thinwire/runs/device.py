"""Chooses the device, and sets the number of threads and how memory is reused."""

from __future__ import annotations

import ctypes
import os

import torch

from thinwire.config import RunConfig
from thinwire.cores import num_threads
from thinwire.errors import UserError

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30


def set_up_device(
    config: RunConfig, threads: int | None = None, device: str | None = None
) -> torch.device:
    """Set up threads and memory, and return the device to compute on.

    Args:
        config: its section `run` has threads and device.
        threads: the threads of this process instead; 0: one per core.
        device: the device of this process instead.

    Raises:
        UserError: this machine has no such device.
    """
    reuse_freed_memory()
    wanted = config.run.threads if threads is None else threads
    torch.set_num_threads(num_threads(wanted))
    return find_device(device or config.run.device)


def find_device(wanted: str) -> torch.device:
    """The device `cpu`, `cuda`, `mps`, or `auto`: CUDA if there is a GPU, else the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if wanted not in available:
        raise UserError(f"there is no device {wanted!r}; known are auto, {', '.join(available)}")
    if not available[wanted]:
        raise UserError(f"--device {wanted} was asked for, but PyTorch finds no such device here")
    if wanted == "cuda":  # the workers of a machine take its GPUs in turn
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device(wanted)


def reuse_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next step.

    By default glibc returns blocks of some megabytes to the system at once, and the system clears
    them again for the next step: 4,200 page faults and 11% of the time of a step at width 512.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
