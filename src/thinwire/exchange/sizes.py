"""What a step of the synchronous and of the periodic exchange sends, in bytes: pure, and exact.

The sizes follow from the numbers of rows alone, so they can be had before anything is trained.
docs/wire-format.md says the same in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from thinwire.exchange.coded import coded_bytes, piece_shapes, sums_codec
from thinwire.exchange.hidden import num_selected
from thinwire.transport.collective import all_gather_bytes
from thinwire.wire.codecs import Scaled, make_codec
from thinwire.wire.indices import encoded_bytes

Shape = Sequence[int]


@dataclass(frozen=True)
class TouchedTables:
    """Tables whose rows one worker touches alike, as those of an output's weight and bias.

    Attributes:
        row_shapes: of one row of each: `(256,)`, or `()` where a row is one number.
        num_rows: rows of each; periodic: those of the fragment.
        num_own: rows of this worker's own, which go with their ids; None: it touches every row.
        largest_gap: between neighbours among their ids.
        num_shared: rows that a shared seed drew.
    """

    row_shapes: Sequence[Shape]
    num_rows: int
    num_own: int | None
    largest_gap: int = 0
    num_shared: int = 0

    def shapes(self, num_rows: int) -> list[Shape]:
        """The shapes of so many rows of each table."""
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
    """What one worker sends in one step, but for the numbers of `total_bytes`.

    Args:
        num_workers: all workers of the run.
        codec: by its name.
        tables: what the worker touches of the tables.
        blocks: shapes of the hidden blocks.
        everything: whole tables travel.
        hidden_fraction: the part of the blocks' rows that travels.
        rank: of the worker; one adds up a row more than another where they do not come out even.
    """
    sent = all_gather_bytes(num_workers, _ids_bytes(tables))
    early = [t for t in tables if t.num_own is None or t.num_shared]
    late = [t for t in tables if t not in early]
    travelling = [(num_selected(hidden_fraction, num_rows), *row) for num_rows, *row in blocks]
    late_others: list[Shape] = [*travelling, (len(blocks),)]
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
    """What one worker sends in one fragment's turn, every `local_steps / fragments` steps.

    Args:
        num_workers: all workers of the run.
        codec: by its name.
        tables: the fragment's rows of the tables: all of them in `num_rows`, those that this worker
            has changed in `num_own`.
        blocks: shapes of the fragment's rows of the hidden blocks.
        everything: all rows of the fragment travel.
        accumulators: rows are Adagrad's, and each changed one comes with the growth of its pile.
        rank: as in `sync_bytes`.
    """
    values: list[Shape] = []
    piles: list[Shape] = []
    for t in tables:
        assert t.num_own is not None, "changed rows are counted"
        values += t.shapes(t.num_rows if everything else t.num_own)
        piles += [(t.num_own,) for _ in t.row_shapes if accumulators]
    row_bytes = coded_bytes(make_codec(codec), values) + coded_bytes(make_codec("fp32"), piles)
    sent = all_gather_bytes(num_workers, _ids_bytes(tables) + row_bytes)
    return sent + (sum_bytes(num_workers, codec, blocks, rank) if blocks else 0)


def fragment_shapes(shapes: Sequence[Shape], fragment: int, num_fragments: int) -> list[Shape]:
    """Of tensors of these shapes, the rows that belong to a fragment of the periodic exchange."""
    return [(len(range(fragment, rows, num_fragments)), *row) for rows, *row in shapes]


def sum_bytes(num_workers: int, codec: str, shapes: Sequence[Shape], rank: int = 0) -> int:
    """What worker `rank` sends when tensors of these shapes are added up over all workers."""
    given_in, summed_in = make_codec(codec), sums_codec(codec)
    if not isinstance(given_in, Scaled):
        shapes = [(sum(map(prod, shapes)),)]
    pieces = [piece_shapes(shapes, num_workers, r) for r in range(num_workers)]
    given = sum(coded_bytes(given_in, piece) for r, piece in enumerate(pieces) if r != rank)
    return given + (num_workers - 1) * coded_bytes(summed_in, pieces[rank])


def total_bytes(num_workers: int, num_numbers: int) -> int:
    """What a worker sends when so many numbers (float64) are added up over all workers."""
    return all_gather_bytes(num_workers, 8 * num_numbers, lengths_known=True)


def _ids_bytes(tables: Sequence[TouchedTables]) -> int:
    return sum(encoded_bytes(t.num_own, t.largest_gap) for t in tables if t.num_own is not None)
