"""Lines from a Python iterator: strings, or lists of token ids of a tokenizer from a file.

Strings are written to a text file, which is then read like any other. Token ids are copied to the
disk; when the number of lines is known, each line is written to its split.

N tokens of some whole lines, L lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thinwire.data.corpus import (
    META_FILE,
    SPLITS,
    TOKENIZER_FILE,
    Meta,
    file_digest,
    narrowest_dtype,
)
from thinwire.data.recipes import KINDS, Options, find_recipe
from thinwire.data.sources import copy_named
from thinwire.data.split_file import Ids, SplitFile, SplitPart
from thinwire.data.splits import TRAIN, Division
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError

Line = str | Iterable[int]
NAME = "the given lines"
# The number of ids that are read back at a time; blocks are cut at line ends.
BLOCK_TOKENS = 1 << 18


def first_of(lines: Iterable[Line]) -> tuple[Iterator[Line], Line]:
    """An iterator over all lines, and the first line.

    Raises:
        UserError: there are no lines, or `lines` is one string.
    """
    if isinstance(lines, str):
        raise UserError("lines is one string: give a list or an iterator of lines")
    rest = iter(lines)
    try:
        first = next(rest)
    except StopIteration:
        raise UserError(f"there is no text in {NAME}") from None
    return chain([first], rest), first


def text_file(lines: Iterable[Line], folder: Path) -> Path:
    """Write these lines to a text file in a folder.

    Raises:
        UserError: a line is not a string, or contains a character that UTF-8 cannot encode.
    """
    file = copy_named(NAME, folder, 0)
    with file.open("w", encoding="utf-8", newline="") as out:
        for number, line in enumerate(lines, 1):
            if not isinstance(line, str):
                raise UserError(f"line {number:,} of {NAME} is no string, and the first one is")
            try:
                out.write(line if line.endswith("\n") else f"{line}\n")
            except UnicodeEncodeError:
                raise UserError(f"line {number:,} of {NAME} is not UTF-8") from None
    return file


def write_ids(
    lines: Iterable[Line], tokenizer: str, folder: Path, *, valid: float, test: float
) -> None:
    """Write the data folder of lines of token ids.

    Args:
        lines: the ids of each line.
        tokenizer: the file of the tokenizer that the ids belong to.
        folder: an empty folder.
        valid: the fraction of the lines that is held out for validation.
        test: the fraction of the lines that is held out for the test.

    Raises:
        UserError: the tokenizer is not a file, or a line has a value that is not one of its ids.
    """
    if tokenizer in KINDS:
        raise UserError(
            f"lines of ids need the tokenizer that they are of, a file, and it is {tokenizer}"
        )
    content = find_recipe(
        tokenizer, Options(), num_processes=1, learn_bpe=lambda size: {}
    ).tokenizer_json([])
    reader = Tokenizer.parse(content, tokenizer)
    copy = folder / "ids"
    num_lines = _copy_ids(lines, copy, reader)
    division = Division.by_fraction(num_lines, valid=valid, test=test)
    dtype = narrowest_dtype(reader.vocab_size)
    counts_V = np.zeros(reader.vocab_size, dtype=np.int64)
    with ExitStack() as stack:
        files = [stack.enter_context(SplitFile(folder / f"{split}.bin")) for split in SPLITS]
        first_line = 0
        for ids_N in _blocks(copy, reader.eos_id):
            ends_N = ids_N == reader.eos_id
            line_N = first_line + np.cumsum(ends_N) - ends_N
            first_line += int(ends_N.sum())
            split_N = division.split_of(line_N)
            for split in np.unique(split_N).tolist():
                part = _part(split, ids_N[split_N == split], reader, dtype)
                if split == TRAIN:
                    counts_V += np.bincount(part.ids, minlength=len(counts_V))
                files[split].write(part, reader.unk_id)
    copy.unlink()
    file = folder / TOKENIZER_FILE
    file.write_text(content, encoding="utf-8")
    Meta(
        tokenizer="file",
        tokenizer_blake2b=file_digest(file),
        vocab_size=reader.vocab_size,
        dtype=dtype.name,
        unk_id=reader.unk_id,
        eos_id=reader.eos_id,
        counts=counts_V.tolist(),
        splits={split: file.meta() for split, file in zip(SPLITS, files, strict=True)},
    ).write(folder / META_FILE)


def _copy_ids(lines: Iterable[Line], copy: Path, tokenizer: Tokenizer) -> int:
    """Write all ids, each line with its end, and count the lines."""
    num_lines = 0
    with copy.open("wb") as file:
        for number, line in enumerate(lines, 1):
            ids_N = _checked(line, number, tokenizer.vocab_size)
            if not len(ids_N) or ids_N[-1] != tokenizer.eos_id:
                ids_N = np.append(ids_N, tokenizer.eos_id)
            num_lines += int(np.count_nonzero(ids_N == tokenizer.eos_id))
            ids_N.astype("<u4").tofile(file)
    return num_lines


def _checked(line: Line, number: int, vocab_size: int) -> npt.NDArray[np.int64]:
    try:
        if isinstance(line, str):
            raise TypeError
        ids_N = np.asarray(line if hasattr(line, "__len__") else list(line))
        ids_N = ids_N.astype(np.int64) if not len(ids_N) else ids_N
        if ids_N.ndim != 1 or ids_N.dtype.kind not in "iu":
            raise TypeError
    except (TypeError, ValueError):
        raise UserError(f"line {number:,} of {NAME} is no list of token ids") from None
    if len(ids_N) and not (ids_N.min() >= 0 and ids_N.max() < vocab_size):
        wrong = next(id for id in ids_N.tolist() if not 0 <= id < vocab_size)
        raise UserError(
            f"line {number:,} of {NAME} holds the id {wrong}, and the tokenizer has {vocab_size:,}"
        )
    return ids_N.astype(np.int64)


def _blocks(copy: Path, eos_id: int) -> Iterator[npt.NDArray[Any]]:
    """Read the ids back, some whole lines at a time."""
    begun = np.empty(0, dtype="<u4")
    with copy.open("rb") as file:
        while len(read := np.fromfile(file, dtype="<u4", count=BLOCK_TOKENS)):
            ids_N = np.concatenate([begun, read])
            ends = np.flatnonzero(ids_N == eos_id)
            end = int(ends[-1]) + 1 if len(ends) else 0
            if end:
                yield ids_N[:end]
            begun = ids_N[end:]


def _part(
    split: int, ids_N: npt.NDArray[Any], tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> SplitPart:
    text = tokenizer.decode(ids_N.tolist())
    num_lines = int(np.count_nonzero(ids_N == tokenizer.eos_id))
    totals = np.array([len(ids_N), len(text.split()), len(text)])
    ids: Ids = ids_N.astype(dtype)
    return SplitPart(split, ids, totals, num_lines)
