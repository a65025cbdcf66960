"""The sizes of messages in bytes, computed in advance: for plans, and to limit what is read."""

from __future__ import annotations

from collections.abc import Sequence

from thinwire.parameter_server.fields import mask_bytes
from thinwire.parameter_server.protocol import PULL_NUMBERS, PUSH_NUMBERS, ROWS_NUMBERS
from thinwire.wire.codecs import Codec
from thinwire.wire.frames import frame_bytes
from thinwire.wire.indices import encoded_bytes


def pull_bytes(num_parameters: int, groups: Sequence[tuple[int, int] | None]) -> int:
    """The size of a PULL in bytes: 48 + 8 P, and 8 plus the ids for each group.

    Args:
        num_parameters: P.
        groups: for each, how many rows, and the largest gap between them; None: every row.
    """
    return frame_bytes(PULL_NUMBERS + num_parameters, _ids_bytes(groups))


def rows_bytes(
    codec: Codec,
    masked: Sequence[int | None],
    shapes: Sequence[Sequence[int]],
    block_codec: Codec | None = None,
    block_shapes: Sequence[Sequence[int]] = (),
) -> int:
    """The size of a ROWS in bytes: 56, 8 plus a bit per row for each group, 8 plus its H rows for
    each parameter.

    Args:
        codec: encodes rows of tables.
        masked: for each group, the number of rows in the pull; None: all are sent without a mask.
        shapes: for each table of the selection, the shape `[H, ...]` of the rows that are sent.
        block_codec: encodes blocks; None: the same codec.
        block_shapes: for each block of the selection, the shape of the rows that are sent.
    """
    masks = [0 if num_rows is None else mask_bytes(num_rows) for num_rows in masked]
    blocks = map((block_codec or codec).num_bytes, block_shapes)
    return frame_bytes(ROWS_NUMBERS, [*masks, *map(codec.num_bytes, shapes), *blocks])


def push_bytes(
    codec: Codec,
    num_parameters: int,
    groups: Sequence[tuple[int, int] | None],
    shapes: Sequence[Sequence[int]],
) -> int:
    """The size of a PUSH in bytes: 136 + 8 P, 8 plus the ids for each group, 8 plus its R rows for
    each parameter.

    Args:
        codec: encodes gradients.
        num_parameters: P.
        groups: for each, how many rows, and the largest gap between them; None: every row.
        shapes: for each parameter of the selection, the shape `[R, ...]` of its gradients.
    """
    sizes = [*_ids_bytes(groups), *map(codec.num_bytes, shapes)]
    return frame_bytes(PUSH_NUMBERS + num_parameters, sizes)


def _ids_bytes(groups: Sequence[tuple[int, int] | None]) -> list[int]:
    return [0 if group is None else encoded_bytes(*group) for group in groups]
