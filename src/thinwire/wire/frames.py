"""A frame is the content of one message, encoded as one string of bytes of known size.

bytes        what
4            the letters TWF1
4            int32: kind
4, 4         int32: the number of numbers (n), the number of parts (p)
8 n          float64: the numbers
8 p          int64: the size of each part in bytes
the rest     the parts, concatenated
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAGIC = int.from_bytes(b"TWF1", "little")
HEADER_BYTES = 16


@dataclass(frozen=True)
class Frame:
    """The kind of a message, a few numbers, and byte strings."""

    kind: int
    numbers: tuple[float, ...] = ()
    parts: tuple[Tensor, ...] = ()
    """Byte strings: tensors of uint8 with one dimension."""


def pack(frame: Frame) -> Tensor:
    """Encode a frame as bytes, uint8."""
    counts = [MAGIC, frame.kind, len(frame.numbers), len(frame.parts)]
    return torch.cat(
        [
            torch.tensor(counts, dtype=torch.int32).view(torch.uint8),
            torch.tensor(frame.numbers, dtype=torch.float64).view(torch.uint8),
            torch.tensor([len(p) for p in frame.parts], dtype=torch.int64).view(torch.uint8),
            *(part.cpu() for part in frame.parts),
        ]
    )


def unpack(data: Tensor) -> Frame:
    """Decode a frame.

    Raises:
        ValueError: the bytes are not one complete frame.
    """
    if len(data) < HEADER_BYTES:
        raise ValueError(f"a frame has {HEADER_BYTES} bytes or more, not {len(data)}")
    magic, kind, num_numbers, num_parts = data[:HEADER_BYTES].clone().view(torch.int32).tolist()
    if magic != MAGIC:
        raise ValueError("these bytes are no frame: they do not begin with TWF1")
    if num_numbers < 0 or num_parts < 0:
        raise ValueError(f"a frame cannot have {num_numbers} numbers and {num_parts} parts")
    sizes_at = HEADER_BYTES + 8 * num_numbers
    parts_at = sizes_at + 8 * num_parts
    if len(data) < parts_at:
        raise ValueError(f"the frame is cut off: {len(data)} bytes of {parts_at} or more")
    numbers = data[HEADER_BYTES:sizes_at].clone().view(torch.float64).tolist()
    sizes = data[sizes_at:parts_at].clone().view(torch.int64).tolist()
    if any(size < 0 for size in sizes) or parts_at + sum(sizes) != len(data):
        raise ValueError(f"the frame's parts need {sum(sizes)} bytes, not {len(data) - parts_at}")
    return Frame(kind, tuple(numbers), tuple(data[parts_at:].split(sizes)) if sizes else ())


def frame_bytes(num_numbers: int, part_bytes: Sequence[int]) -> int:
    """The size of a frame with `num_numbers` numbers and parts of these sizes."""
    return HEADER_BYTES + 8 * num_numbers + 8 * len(part_bytes) + sum(part_bytes)
