"""Files of scores with one row for each line of a text, which can be continued if interrupted.

A row is either columns separated by tabs or a JSON object; both say if logarithms are to base 10.
An interrupted file has the rows of the first lines of the text. It is continued after its last
whole row, if its rows fit the text: every row has the number of tokens and of unknown words of its
line, and the last rows have the log-probabilities that the model gives now.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf, isclose, isfinite, log
from pathlib import Path
from typing import IO, TypeVar

from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.score import LineLogprobs, Score

# The number of rows at the end of a file that are scored again before it is continued.
CHECKED_ROWS = 64
# How far a score may be from the same score computed in another batch, and printed.
RELATIVE, ABSOLUTE = 1e-4, 1e-4
SEARCHED_BYTES = 1 << 16

Line = TypeVar("Line")


@dataclass(frozen=True)
class Rows:
    """Formats and parses rows.

    Attributes:
        tokenizer: the tokenizer of the model.
        as_json: whether rows are JSON objects instead of columns.
        with_tokens: whether rows have the log-probability of every token too.
        in_base_10: whether logarithms are to base 10 instead of natural.
    """

    tokenizer: Tokenizer
    as_json: bool = False
    with_tokens: bool = False
    in_base_10: bool = False

    def row(self, line: LineLogprobs) -> str:
        """The row of a line; in JSON, what is not a finite number is null."""
        score = line.score(self.tokenizer.unk_id)
        unit = log(10) if self.in_base_10 else 1.0
        total, logprobs = score.logprob / unit, (line.logprob_T / unit).tolist()
        if not self.as_json:
            columns = [f"{total:.6f}", str(score.num_tokens), str(score.num_unknown)]
            if self.with_tokens:
                columns.append(" ".join(f"{each:.6f}" for each in logprobs))
            return "\t".join([*columns, "log10"] if self.in_base_10 else columns)
        key = "log10prob" if self.in_base_10 else "logprob"
        record: dict[str, object] = {
            key: total if isfinite(total) else None,
            "num_tokens": score.num_tokens,
            "num_unknown": score.num_unknown,
        }
        if self.with_tokens:
            record["tokens"] = [self.tokenizer.token(id) for id in line.ids_T.tolist()]
            record[f"{key}s"] = [each if isfinite(each) else None for each in logprobs]
        return json.dumps(record, ensure_ascii=False)

    def read(self, row: str) -> Score:
        """The score in a row, as a natural logarithm.

        Raises:
            ValueError: the row is not in this format.
        """
        unit = log(10) if self.in_base_10 else 1.0
        if not self.as_json:
            columns = row.split("\t")
            if len(columns) != 3 + self.with_tokens + self.in_base_10:
                raise ValueError
            return Score(float(columns[0]) * unit, int(columns[1]), int(columns[2]))
        record, key = json.loads(row), "log10prob" if self.in_base_10 else "logprob"
        if not isinstance(record, dict) or ("tokens" in record) != self.with_tokens:
            raise ValueError
        with suppress(KeyError, TypeError):
            total = -inf if record[key] is None else float(record[key]) * unit
            return Score(total, int(record["num_tokens"]), int(record["num_unknown"]))
        raise ValueError


@dataclass
class Totals:
    """The sums over all rows of a file, and how many of the rows were there before."""

    num_lines: int = 0
    num_tokens: int = 0
    num_unknown: int = 0
    logprob: float = 0.0
    num_taken_up: int = 0

    def add(self, score: Score) -> None:
        """Count one line."""
        self.num_lines += 1
        self.num_tokens += score.num_tokens
        self.num_unknown += score.num_unknown
        self.logprob += score.logprob


def write_rows(
    out: Path,
    rows: Rows,
    lines: Iterator[str],
    score: Callable[[Iterable[str]], Iterator[LineLogprobs]],
) -> Totals:
    """Write the row of every line to a file; rows that are there already are checked and kept.

    Args:
        out: the file.
        rows: the format of a row.
        lines: the text.
        score: scores lines, each from a fresh state.

    Raises:
        UserError: the file has rows that are not the scores of this text by this model.
    """
    totals = Totals()
    with _opened(out) as file:
        last: deque[tuple[str, Score]] = deque(maxlen=CHECKED_ROWS)
        for row, line in _paired(file, lines, out):
            written = _read(rows, row, out, totals.num_lines + 1)
            (ids_T,) = rows.tokenizer.encode_lines([line])
            num_unknown = int((ids_T == rows.tokenizer.unk_id).sum())
            if (len(ids_T), num_unknown) != (written.num_tokens, written.num_unknown):
                raise _other(out, totals.num_lines + 1)
            last.append((line, written))
            totals.add(written)
        first_checked = totals.num_lines - len(last) + 1
        again = score(line for line, _ in list(last))
        for number, (found, (_, written)) in enumerate(
            zip(again, last, strict=True), first_checked
        ):
            _require_same(rows, found, written, out, number)
        _append(file, rows, score(lines), totals)
    return totals


def write_carried_rows(
    out: Path,
    rows: Rows,
    scored: Iterator[LineLogprobs],
) -> Totals:
    """The same for lines whose state is carried over: all rows that are there are scored again.

    Raises:
        UserError: as `write_rows`.
    """
    totals = Totals()
    with _opened(out) as file:
        for row, line in _paired(file, scored, out):
            written = _read(rows, row, out, totals.num_lines + 1)
            _require_same(rows, line, written, out, totals.num_lines + 1)
            totals.add(written)
        _append(file, rows, scored, totals)
    return totals


def _opened(out: Path) -> IO[bytes]:
    """Open the file at its beginning, and cut off an incomplete row at its end."""
    file = out.open("r+b" if out.exists() else "w+b")
    size = file.seek(0, os.SEEK_END)
    end = size
    while end > 0:
        begin = max(0, end - SEARCHED_BYTES)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        end = begin + at + 1 if at >= 0 else begin
        if at >= 0:
            break
    file.truncate(end)
    file.seek(0)
    return file


def _paired(file: IO[bytes], lines: Iterator[Line], out: Path) -> Iterator[tuple[str, Line]]:
    """Yield each row that is in the file, with its line of the text."""
    number = 0
    for number, row in enumerate(iter(file.readline, b""), 1):
        line = next(lines, None)
        if line is None:
            raise UserError(
                f"{out} holds scores of more lines than the text, which has {number - 1:,}: name "
                "another file, or remove it"
            )
        try:
            yield row.decode("utf-8").rstrip("\n"), line
        except UnicodeDecodeError:
            raise _other(out, number) from None


def _read(rows: Rows, row: str, out: Path, number: int) -> Score:
    try:
        return rows.read(row)
    except ValueError:
        raise UserError(
            f"line {number:,} of {out} is no score of the kind asked for: name another file, or "
            "remove it"
        ) from None


def _require_same(rows: Rows, line: LineLogprobs, written: Score, out: Path, number: int) -> None:
    found = line.score(rows.tokenizer.unk_id)
    same = isclose(found.logprob, written.logprob, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    if not same or (found.num_tokens, found.num_unknown) != (
        written.num_tokens,
        written.num_unknown,
    ):
        raise _other(out, number)


def _other(out: Path, number: int) -> UserError:
    return UserError(
        f"line {number:,} of {out} is not the score of that line of the text by this model: name "
        "another file, or remove it"
    )


def _append(
    file: IO[bytes],
    rows: Rows,
    scored: Iterable[LineLogprobs],
    totals: Totals,
) -> None:
    totals.num_taken_up = totals.num_lines
    file.seek(0, os.SEEK_END)
    for line in scored:
        file.write(f"{rows.row(line)}\n".encode())
        totals.add(line.score(rows.tokenizer.unk_id))
