"""The exact number of bytes that a step of the synchronous or the periodic exchange sends.

It depends only on the numbers of rows, so it can be computed before anything is trained.
docs/wire-format.md describes the same format in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from thinwire.exchange.coded import coded_bytes, piece_shapes, sums_codec
from thinwire.exchange.hidden import num_selected
from thinwire.transport.collective import all_gather_bytes
from thinwire.wire.codecs import make_codec
from thinwire.wire.indices import encoded_bytes

Shape = Sequence[int]


@dataclass(frozen=True)
class TouchedTables:
    """Tables of which one worker touches the same rows, such as an output's weight and bias.

    Attributes:
        row_shapes: the shape of one row of each table: `(256,)`, or `()` if a row is one number.
        num_rows: number of rows of each table; periodic: number of rows of the fragment.
        num_own: number of rows that only this worker knows of, so that their ids are sent too.
            None: the worker touches every row.
        largest_gap: the largest difference between neighbouring ids of these rows.
        num_shared: number of rows that were drawn from the seed that all workers share.
    """

    row_shapes: Sequence[Shape]
    num_rows: int
    num_own: int | None
    largest_gap: int = 0
    num_shared: int = 0

    def shapes(self, num_rows: int) -> list[Shape]:
        """The shape of `num_rows` rows of each table."""
        return [(num_rows, *row) for row in self.row_shapes]


def sync_bytes(
    num_workers: int,
    codec: str,
    tables: Sequence[TouchedTables],
    blocks: Sequence[Shape],
    *,
    everything: bool = False,
    hidden_fraction: float = 1.0,
    rank: int = 0,
) -> int:
    """The bytes that one worker sends in one step, without those of `total_bytes`.

    Args:
        num_workers: number of workers of the run.
        codec: name of the codec.
        tables: the rows of the tables that the worker touches.
        blocks: shapes of the hidden blocks.
        everything: whether whole tables are sent.
        hidden_fraction: the fraction of the blocks' rows that is sent.
        rank: rank of the worker. If rows do not divide evenly, the first workers sum one row more.
    """
    sent = all_gather_bytes(num_workers, _ids_bytes(tables))
    early = [t for t in tables if t.num_own is None or t.num_shared]
    late = [t for t in tables if t not in early]
    sent_blocks = [(num_selected(hidden_fraction, num_rows), *row) for num_rows, *row in blocks]
    late_others: list[Shape] = [*sent_blocks, (len(blocks),)]
    for group, others in ((early, []), (late, late_others)):
        summed: list[Shape] = list(others)
        for t in group:
            summed += t.shapes(t.num_rows if everything or t.num_own is None else t.num_shared)
        if summed:
            sent += sum_bytes(num_workers, codec, summed, rank)
        own = [t for t in group if t.num_own is not None]
        if own and not everything:
            values = [shape for t in own for shape in t.shapes(t.num_own or 0)]
            own_bytes = coded_bytes(make_codec(codec), values)
            sent += all_gather_bytes(num_workers, own_bytes, lengths_known=True)
    return sent


def periodic_bytes(
    num_workers: int,
    codec: str,
    tables: Sequence[TouchedTables],
    blocks: Sequence[Shape],
    *,
    everything: bool = False,
    accumulators: bool = True,
    rank: int = 0,
) -> int:
    """The bytes that one worker sends in one turn, every `local_steps / fragments` steps.

    Args:
        num_workers: number of workers of the run.
        codec: name of the codec.
        tables: the fragment's rows of the tables: `num_rows` counts all of them, `num_own` those
            that this worker has changed.
        blocks: shapes of the fragment's rows of the hidden blocks.
        everything: whether all rows of the fragment are sent.
        accumulators: whether Adagrad updates the rows, so that the growth of its accumulator is
            sent with each changed row.
        rank: as in `sync_bytes`.
    """
    values: list[Shape] = []
    growth: list[Shape] = []
    for t in tables:
        assert t.num_own is not None, "changed rows are counted"
        values += t.shapes(t.num_rows if everything else t.num_own)
        growth += [(t.num_own,) for _ in t.row_shapes if accumulators]
    row_bytes = coded_bytes(make_codec(codec), values) + coded_bytes(make_codec("fp32"), growth)
    sent = all_gather_bytes(num_workers, _ids_bytes(tables) + row_bytes)
    return sent + (sum_bytes(num_workers, codec, blocks, rank) if blocks else 0)


def sum_bytes(num_workers: int, codec: str, shapes: Sequence[Shape], rank: int = 0) -> int:
    """The bytes that worker `rank` sends when tensors of these shapes are summed over workers."""
    given_in, summed_in = make_codec(codec), sums_codec(codec)
    if not given_in.per_row:
        shapes = [(sum(map(prod, shapes)),)]
    pieces = [piece_shapes(shapes, num_workers, r) for r in range(num_workers)]
    given = sum(coded_bytes(given_in, piece) for r, piece in enumerate(pieces) if r != rank)
    return given + (num_workers - 1) * coded_bytes(summed_in, pieces[rank])


def total_bytes(num_workers: int, num_numbers: int) -> int:
    """The bytes that a worker sends when `num_numbers` float64 are summed over all workers."""
    return all_gather_bytes(num_workers, 8 * num_numbers, lengths_known=True)


def _ids_bytes(tables: Sequence[TouchedTables]) -> int:
    return sum(encoded_bytes(t.num_own, t.largest_gap) for t in tables if t.num_own is not None)
