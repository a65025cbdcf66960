"""Writes a `.bin` file of a data folder."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thinwire.data.corpus import SplitMeta

Ids = npt.NDArray[np.unsignedinteger[Any]]


class SplitPart(NamedTuple):
    """Ids to append to one split, and their totals."""

    split: int
    """TRAIN, VALID or TEST."""

    ids: Ids

    totals: npt.NDArray[np.int64]
    """The number of tokens, words and characters, as in `Totals`."""

    num_lines: int
    """The number of lines that end in this part."""


class SplitFile:
    """A `.bin` file that is written part by part, and its totals so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = blake2b(digest_size=16)
        self._totals = np.zeros(3, dtype=np.int64)
        self._num_lines = self._num_unknown = 0

    def __enter__(self) -> SplitFile:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, part: SplitPart, unk_id: int | None) -> None:
        """Append the part; `unk_id` is the id of unknown words."""
        data = part.ids.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._totals += part.totals
        self._num_lines += part.num_lines
        if unk_id is not None:
            self._num_unknown += int(np.count_nonzero(part.ids == unk_id))

    def meta(self) -> SplitMeta:
        """The entry of this split in `meta.json`."""
        tokens, words, characters = self._totals.tolist()
        return SplitMeta(
            tokens=tokens,
            unknown=self._num_unknown,
            words=words,
            characters=characters,
            lines=self._num_lines,
            blake2b=self._digest.hexdigest(),
        )
