"""How many bytes messages take, before there are any: for plans, and to bound what is read."""

from __future__ import annotations

from collections.abc import Sequence

from thinwire.parameter_server.fields import mask_bytes
from thinwire.parameter_server.protocol import PULL_NUMBERS, PUSH_NUMBERS, ROWS_NUMBERS
from thinwire.wire.codecs import Codec
from thinwire.wire.frames import frame_bytes
from thinwire.wire.indices import encoded_bytes


def pull_bytes(num_parameters: int, groups: Sequence[tuple[int, int] | None]) -> int:
    """The size of a PULL: 48 + 8 P bytes, and for each group 8 and its ids.

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
    """The size of a ROWS: 56 bytes, a group 8 and a bit a row, a parameter 8 and its H rows.

    Args:
        codec: the one that rows of tables travel in.
        masked: for each group, how many rows the pull has named; None: all are sent, unmasked.
        shapes: for each table of the selection, the shape `[H, ...]` of the rows that are sent.
        block_codec: the one that blocks travel in; None: the same.
        block_shapes: for each block of the selection, that of its rows.
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
    """The size of a PUSH: 136 + 8 P bytes, a group 8 and its ids, a parameter 8 and its R rows.

    Args:
        codec: the one that gradients travel in.
        num_parameters: P.
        groups: for each, how many rows, and the largest gap between them; None: every row.
        shapes: for each parameter of the selection, the shape `[R, ...]` of its gradients.
    """
    sizes = [*_ids_bytes(groups), *map(codec.num_bytes, shapes)]
    return frame_bytes(PUSH_NUMBERS + num_parameters, sizes)


def _ids_bytes(groups: Sequence[tuple[int, int] | None]) -> list[int]:
    return [0 if group is None else encoded_bytes(*group) for group in groups]
