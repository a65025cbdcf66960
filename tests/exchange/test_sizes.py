"""The bytes of a step are those that are counted, and those of the formula."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.config import RunConfig
from thinwire.exchange.contract import Traffic
from thinwire.exchange.sizes import TouchedTables, sync_bytes, total_bytes
from thinwire.exchange.sync import Sync
from thinwire.exchange.unshared_rows import unshared_rows
from thinwire.touched import Touched
from thinwire.transport.collective import Collective, all_gather_bytes
from thinwire.wire.indices import encoded_bytes

torch.set_num_threads(1)

Settings = Callable[..., RunConfig]
Together = Callable[..., list[Any]]
# What the loop adds up beside the exchange: loss, stop, three decisions, and five meters.
NUM_NUMBERS = 10
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "lstm": {},
    "tied": {"model": {"tied": True}},
    "full": {"loss": {"kind": "full"}},
}


def test_the_bytes_of_a_step_written_out(small: Any, together: Together) -> None:
    """Two workers; 3 shared output rows of 2 and 1 numbers; worker 0 has 2 rows of the embedding,
    0 and 5, and 1 output row of its own; worker 1 has 1 and none. Blocks of 6 x 2 and 3."""

    def sent(member: Collective, settings: dict[str, Any]) -> int:
        mine = small(Sync, member, **settings)
        inputs, own = ([1, 5], [3]) if member.rank == 0 else ([7], [])
        mine.step(mine.touched(inputs, [0, 2, 4], own))
        return member.meter.sent

    # Ids: 8 of header, 8 of the first, 1 a gap, for the embedding and for the output.
    ids = [8 + (8 + 8 + 1) + (8 + 8), 8 + (8 + 8) + 8]
    # Each gives the other its part and the sums of its own: as many numbers as there are.
    for codec, num_bytes in (("fp32", 4), ("bf16", 2)):
        early = num_bytes * (3 * 2 + 3)
        late = num_bytes * (6 * 2 + 3 + 2)  # and a number for each block
        own = [num_bytes * 3 + num_bytes * 2 * 2, num_bytes * 2]
        found = together(2, partial(sent, settings={"codec": codec}))
        assert found == [ids[rank] + early + late + own[rank] for rank in (0, 1)]

    # Worker 0 adds up 2 of 3 rows or numbers and gives the other 1 away, worker 1 the reverse.
    early = 3 * (4 + 2) + (4 + 2) + (4 + 1)
    late = 6 * (4 + 2) + (4 + 2) + (4 + 1) + 2 * (4 + 1)
    own = [(4 + 2) + (4 + 1) + 2 * (4 + 2), 4 + 2]
    found = together(2, partial(sent, settings={"codec": "int8"}))
    assert found == [ids[rank] + early + late + own[rank] for rank in (0, 1)]

    tables = 4 * (12 * 2 + 12) + 4 * 12 * 2
    found = together(2, partial(sent, settings={"select": "everything"}))
    assert found == [ids[rank] + tables + 4 * (6 * 2 + 3 + 2) for rank in (0, 1)]

    found = together(2, partial(sent, settings={"hidden_fraction": 0.4}))
    late = 4 * (3 * 2 + 2 + 2)  # ceil(0.4 x 6) and ceil(0.4 x 3) rows
    own = [4 * 3 + 4 * 2 * 2, 4 * 2]
    assert found == [ids[rank] + 4 * (3 * 2 + 3) + late + own[rank] for rank in (0, 1)]


def tables_of(touched: Touched, tables: dict[str, Tensor]) -> list[TouchedTables]:
    """The numbers of rows, as `sync_bytes` wants them."""
    found = []
    for group in unshared_rows(touched):
        ids = group.ids_O
        found.append(
            TouchedTables(
                [tables[name].shape[1:] for name in group.names],
                len(tables[group.names[0]]),
                len(ids),
                int(ids.diff().max()) if len(ids) > 1 else 0,
                len(group.shared_S),
            )
        )
    for name, ids in touched.rows.items():
        if ids is None:
            found.append(TouchedTables([tables[name].shape[1:]], len(tables[name]), None))
    return found


@pytest.mark.parametrize("case", ["lstm", "tied", "full"])
@pytest.mark.parametrize(
    ("codec", "exchange"),
    [
        *((codec, {}) for codec in ("fp32", "bf16", "int8", "int4")),
        *((codec, {"select": "everything"}) for codec in ("fp32", "int8")),
        *((codec, {"hidden_fraction": 0.3}) for codec in ("bf16", "int8")),
    ],
    ids=str,
)
def test_bytes_equal_the_formula(
    case: str,
    codec: str,
    exchange: dict[str, Any],
    toy_data: Path,
    tiny: Settings,
    trained: Any,
    together: Together,
) -> None:
    config = tiny(**MODELS[case] | {"exchange": {"codec": codec, **exchange}})
    for rank, found in enumerate(together(3, partial(trained, toy_data, config, 3))):
        tables, blocks = found.trainer.run.tables, found.trainer.run.blocks
        *steps, upcoming = found.announced
        expected = 0
        for touched, sent in zip(steps, found.sent, strict=True):
            expected += sync_bytes(
                3,
                codec,
                tables_of(touched, tables),
                [block.shape for block in blocks.values()],
                everything="select" in exchange,
                hidden_fraction=exchange.get("hidden_fraction", 1.0),
                rank=rank,
            )
            expected += total_bytes(3, NUM_NUMBERS)
            if touched is steps[-1]:  # the step after it has been announced already
                ids = [(t.num_own, t.largest_gap) for t in tables_of(upcoming, tables)]
                sizes = [encoded_bytes(*own) for own in ids if own[0] is not None]
                assert sent == expected + all_gather_bytes(3, sum(sizes))


def test_dense_bytes_are_those_of_an_all_reduce(small: Any, together: Together) -> None:
    def work(member: Collective) -> Traffic:
        mine = small(Sync, member)
        for _ in range(4):
            mine.step(mine.touched([1], [2], []))
        return mine.exchange.traffic()

    for traffic in together(3, work):
        numbers = 12 * 2 + 12 * 2 + 12 + 6 * 2 + 3
        assert traffic.bytes_dense == pytest.approx(4 * 2 * 2 / 3 * 4 * numbers)
        assert traffic.bytes_sent > 0 and traffic.bytes_received > 0
        assert traffic.exchange_seconds > 0 and traffic.wire_seconds >= 0
