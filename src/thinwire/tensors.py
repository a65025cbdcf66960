"""Tensors in safetensors files."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from thinwire.interrupts import interrupt_later


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file by name, on the CPU.

    Ctrl+C comes when it is read: PyTorch, which asks Python about shapes, would take it for an
    answer.

    Raises:
        OSError: the system refuses.
        SafetensorError: it is damaged.
    """
    with interrupt_later():
        return load_file(file)
