"""A `.bin` file of a data folder as it is written."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thinwire.data.corpus import SplitMeta

Ids = npt.NDArray[np.unsignedinteger[Any]]


class SplitPart(NamedTuple):
    """What is added to one split."""

    split: int
    """TRAIN, VALID or TEST."""

    ids: Ids

    totals: npt.NDArray[np.int64]
    """Tokens, words and characters, as `Totals`."""

    num_lines: int
    """Lines that end here."""


class SplitFile:
    """A `.bin` file that grows, and what is known about it."""

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
        """Append the part, of whose ids `unk_id` is that of unknown words."""
        data = part.ids.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._totals += part.totals
        self._num_lines += part.num_lines
        if unk_id is not None:
            self._num_unknown += int(np.count_nonzero(part.ids == unk_id))

    def meta(self) -> SplitMeta:
        """What `meta.json` says of it."""
        tokens, words, characters = self._totals.tolist()
        return SplitMeta(
            tokens=tokens,
            unknown=self._num_unknown,
            words=words,
            characters=characters,
            lines=self._num_lines,
            blake2b=self._digest.hexdigest(),
        )
