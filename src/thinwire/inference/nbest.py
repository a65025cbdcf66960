"""N-best lists as other tools write and read them.

Kaldi: a line `utt-id-N w1 w2 ...` for each hypothesis, which may be empty; first-pass scores in a
file of their own, `utt-id-N cost`, a cost being a negative log-probability; references
`utt-id w1 w2 ...`.

TSV, as NeMo's rescorer reads it: a line `text<TAB>score` for each hypothesis, the higher the score
the better, with the same number of lines for every utterance; references as a line of text each, or
as a manifest of JSON objects with the key `text`.

U utterances, H hypotheses of all utterances.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thinwire.data.sources import find_sources
from thinwire.errors import UserError
from thinwire.inference.text import read_lines

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NBest:
    """All hypotheses, and which of them belong to one utterance.

    Attributes:
        keys: the key of each hypothesis (utt-id-N); empty for TSV.
        texts: the words of each hypothesis.
        utterances: the indices of each utterance's hypotheses; empty if it is not known which
            hypotheses belong to one utterance.
        first_pass_H: the log-probability of each hypothesis from the first pass; zeros if there was
            none.
    """

    keys: Sequence[str]
    texts: Sequence[str]
    utterances: Mapping[str, Sequence[int]]
    first_pass_H: Scores


def read_kaldi(file: str, scores: str | None) -> NBest:
    """Read n-best lists in Kaldi's format.

    Args:
        file: the hypotheses, or `-` for standard input.
        scores: costs of the first pass; None: there are none.

    Raises:
        UserError: a line is not in this format, a key occurs twice, or a key has no score.
    """
    keys: list[str] = []
    texts: list[str] = []
    utterances: dict[str, list[int]] = {}
    for number, line in _lines(file):
        key, *words = line.split()
        utterance, dash, order = key.rpartition("-")
        if not (dash and utterance and order.isdecimal()):
            raise UserError(f"line {number:,} of {file} begins with {key!r}, not with utt-id-N")
        utterances.setdefault(utterance, []).append(len(keys))
        keys.append(key)
        texts.append(" ".join(words))
    if len(set(keys)) < len(keys):
        twice = next(key for key, number in Counter(keys).items() if number > 1)
        raise UserError(f"{file} has {twice} twice")
    if not keys:
        raise UserError(f"there are no hypotheses in {file}")
    first_pass_H = np.zeros(len(keys))
    if scores is not None:
        cost = {}
        for number, line in _lines(scores):
            fields = line.split()
            if len(fields) != 2:
                raise UserError(f"line {number:,} of {scores} is not a key and a score")
            cost[fields[0]] = _number(fields[1], scores, number)
        if missing := [key for key in keys if key not in cost]:
            raise UserError(f"{scores} has no score of {missing[0]}")
        first_pass_H = np.array([-cost[key] for key in keys])
    return NBest(keys, texts, utterances, first_pass_H)


def read_tsv(file: str, beam: int | None) -> NBest:
    """Read n-best lists in NeMo's format.

    Args:
        file: the hypotheses, or `-` for standard input.
        beam: number of hypotheses of each utterance; None: it is not known.

    Raises:
        UserError: a line is not in this format, or the number of lines is no multiple of the beam.
    """
    texts: list[str] = []
    scores: list[float] = []
    for number, line in _lines(file):
        text, tab, score = line.rpartition("\t")
        if not tab:
            raise UserError(f"line {number:,} of {file} is not a text, a tab and a score")
        texts.append(text)
        scores.append(_number(score, file, number))
    if not texts:
        raise UserError(f"there are no hypotheses in {file}")
    if beam is not None and (beam < 1 or len(texts) % beam):
        raise UserError(f"{file} has {len(texts):,} hypotheses, which is no multiple of {beam}")
    starts = range(0, len(texts), beam) if beam is not None else ()
    utterances = {str(i): range(start, start + (beam or 0)) for i, start in enumerate(starts)}
    return NBest([], texts, utterances, np.array(scores))


def read_references(file: str, nbest: NBest | None) -> dict[str, list[str]]:
    """Read the reference of each utterance, as a list of words.

    Args:
        file: the references.
        nbest: hypotheses in Kaldi's format, whose utterances all need a reference; None: the
            references are in the order of the utterances.

    Raises:
        UserError: a reference is missing.
    """
    found: dict[str, list[str]] = {}
    for number, (_, line) in enumerate(_lines(file)):
        if nbest is not None:
            utterance, *words = line.split()
            found[utterance] = words
        else:
            found[str(number)] = _text(line, file, number + 1).split()
    needed = [] if nbest is None else list(nbest.utterances)
    if missing := [utterance for utterance in needed if utterance not in found]:
        raise UserError(f"{file} has no reference of {missing[0]}")
    if not any(found.values()):
        raise UserError(f"there are no words in {file}")
    return found


def _text(line: str, file: str, number: int) -> str:
    if not line.startswith("{"):
        return line
    try:
        return str(json.loads(line)["text"])
    except (ValueError, KeyError):
        raise UserError(f"line {number:,} of {file} is no JSON object with the key text") from None


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    lines = chain.from_iterable(read_lines(find_sources([file])))
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _number(text: str, file: str | Path, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise UserError(f"line {number:,} of {file} has the score {text!r}, which is no number")
    return value
