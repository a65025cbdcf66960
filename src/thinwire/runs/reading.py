"""Checks what a checkpoint says about the position of a run in its text.

The entry `batches` has the `epoch` and the `step` of the batches, the number of `streams` and their
`length`. An asynchronous run adds its number of `workers`, the `epochs` that it has read, and under
`places` the position of each shard assignment: the four numbers of `Position`. The check is needed
although files have checksums: another program may have written or edited the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from thinwire.errors import UserError

POSITION_NUMBERS = 4


@contextmanager
def read_from(path: Path) -> Iterator[None]:
    """Inside, errors in reading the state of the checkpoint at `path` become `UserError`.

    Raises:
        UserError: an entry is missing or invalid.
    """
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(
            f"{path} has no {error.args[0]}: another version of thinwire has saved it"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def check_reading(batches: Any) -> None:
    """Check that a run can continue from these batches.

    Raises:
        ValueError: an entry is missing or invalid; the message names it.
    """
    if not isinstance(batches, Mapping):
        raise ValueError("its batches are no table")
    for name, least in (("epoch", 0), ("step", 0), ("streams", 1), ("length", 1)):
        if name not in batches:
            raise ValueError(f"its batches have no {name}")
        _require(isinstance(batches[name], int), name, batches[name], least)
    if "workers" in batches:
        _require(isinstance(batches["workers"], int), "workers", batches["workers"], 1)
    if "epochs" in batches:
        _require(True, "epochs", batches["epochs"], 0)
    positions = batches.get("places", {})
    if not isinstance(positions, Mapping):
        raise ValueError("its batches have places that are no table")
    for place, position in positions.items():
        numbers = position if isinstance(position, list) else []
        if not (
            place.isdecimal() and len(numbers) == POSITION_NUMBERS and all(map(_fits, numbers))
        ):
            raise ValueError(f"its batches have {position} as place {place}")


def _require(is_kind: bool, name: str, value: Any, least: int) -> None:
    if not (is_kind and _fits(value) and value >= least):
        raise ValueError(f"its batches have {value} as {name}")


def _fits(value: Any) -> bool:
    """Whether the value is a finite number, 0 or more."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and isfinite(value) and value >= 0
