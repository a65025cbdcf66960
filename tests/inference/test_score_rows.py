"""Rows of scores: what they say, taking up a file, totals of an evaluation, constant memory."""

from __future__ import annotations

import json
import tracemalloc
from itertools import chain, islice, repeat
from math import log
from pathlib import Path

import numpy as np
import pytest

from thinwire.errors import UserError
from thinwire.inference import score as module
from thinwire.inference.score import line_logprobs, text_logprobs
from thinwire.inference.score_rows import Rows, write_carried_rows, write_rows

LINES = ["The cat sees the dog.", "", "An xyzzy follows the tree!", "The dogs hear 7 cats."] * 60


def scorer(model):
    window = model.run.config.data.length
    return lambda lines: line_logprobs(model.model, model.tokenizer, lines, window=window)


def carried(model, lines):
    window = model.run.config.data.length
    return text_logprobs(model.model, model.tokenizer, [lines], window=window)


@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
@pytest.mark.parametrize("context", ["line", "text"])
def test_totals_are_those_of_an_evaluation(trained, kind: str, context: str) -> None:
    model = trained(kind=kind, context=context)
    score = scorer(model) if context == "line" else lambda lines: carried(model, lines)
    lines = list(score(LINES))
    ids = np.concatenate(model.tokenizer.encode_lines(LINES))
    expected = model.evaluate(ids)
    found = [line.score(model.tokenizer.unk_id) for line in lines]
    assert -sum(s.logprob for s in found) == pytest.approx(expected.nats, rel=1e-6)
    assert sum(s.num_tokens for s in found) == expected.tokens_scored
    assert sum(s.num_unknown for s in found) == expected.tokens_unknown
    assert np.concatenate([line.ids_T for line in lines]).tolist() == ids.tolist()


def test_a_carried_line_goes_on_from_the_one_before(trained, monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCK_TOKENS", 3)
    model = trained()
    state, expected = model.start(), []
    for line in LINES[:8]:
        for id in [*model.tokenizer.encode(line), model.tokenizer.eos_id]:
            state, logprob = model.step(state, id)
            expected.append(logprob)
    found = [p for line in carried(model, LINES[:8]) for p in line.logprob_T.tolist()]
    assert found == pytest.approx(expected, abs=1e-5)
    assert list(text_logprobs(model.model, model.tokenizer, [], window=12)) == []


def test_tokens_of_a_line_are_its_steps(trained) -> None:
    model = trained(kind="transformer")
    for line, found in zip(LINES[:4], scorer(model)(LINES[:4]), strict=True):
        state, expected = model.start(), []
        for id in [*model.tokenizer.encode(line), model.tokenizer.eos_id]:
            state, logprob = model.step(state, id)
            expected.append(logprob)
        assert found.logprob_T.tolist() == pytest.approx(expected, abs=1e-5)


def test_what_a_row_says(trained) -> None:
    model = trained()
    (line,) = scorer(model)(["The xyzzy"])
    natural, total = line.logprob_T.tolist(), float(line.logprob_T.sum())
    assert Rows(model.tokenizer).row(line) == f"{total:.6f}\t3\t1"
    columns = Rows(model.tokenizer, with_tokens=True, in_base_10=True).row(line).split("\t")
    assert columns[1:3] == ["3", "1"] and columns[4] == "log10"
    assert float(columns[0]) == pytest.approx(total / log(10), abs=1e-6)
    assert [float(one) for one in columns[3].split()] == pytest.approx(
        [one / log(10) for one in natural], abs=1e-6
    )
    record = json.loads(Rows(model.tokenizer, as_json=True, with_tokens=True).row(line))
    assert record == {
        "logprob": pytest.approx(total),
        "num_tokens": 3,
        "num_unknown": 1,
        "tokens": ["The", "<unk>", "</s>"],
        "logprobs": pytest.approx(natural),
    }
    tenth = json.loads(Rows(model.tokenizer, as_json=True, in_base_10=True).row(line))
    assert tenth["log10prob"] == pytest.approx(total / log(10)) and "logprob" not in tenth


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize("in_base_10", [False, True])
def test_a_row_is_read_back(trained, as_json: bool, with_tokens: bool, in_base_10: bool) -> None:
    model = trained()
    rows = Rows(model.tokenizer, as_json, with_tokens, in_base_10)
    for line in scorer(model)(LINES[:4]):
        expected, found = line.score(model.tokenizer.unk_id), rows.read(rows.row(line))
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert (found.num_tokens, found.num_unknown) == (
            expected.num_tokens,
            expected.num_unknown,
        )
    for other in ("", "x\t1\t0", "1.0\t2", "{}", "[]", '{"logprob": "x"}'):
        with pytest.raises(ValueError):
            rows.read(other)


@pytest.mark.parametrize("is_carried", [False, True])
def test_a_file_is_taken_up_wherever_it_was_cut(trained, tmp_path: Path, is_carried: bool) -> None:
    model, out = trained(), tmp_path / "scores"
    rows = Rows(model.tokenizer)
    lines = LINES[:9]

    def write():
        if is_carried:
            return write_carried_rows(out, rows, iter(carried(model, lines)))
        return write_rows(out, rows, iter(lines), scorer(model))

    assert write().num_taken_up == 0
    whole = out.read_bytes()
    assert whole.count(b"\n") == 9
    for size in range(0, len(whole) + 1, 7):
        out.write_bytes(whole[:size])
        totals = write()
        assert totals.num_taken_up == whole[:size].count(b"\n") and totals.num_lines == 9
        assert [float(row.split()[0]) for row in out.read_text().splitlines()] == pytest.approx(
            [float(row.split()[0]) for row in whole.decode().splitlines()], abs=1e-4
        )
        assert totals.logprob == pytest.approx(
            sum(float(row.split()[0]) for row in whole.decode().splitlines()), abs=1e-3
        )


def test_a_file_of_another_text_or_model_is_refused(trained, tmp_path: Path) -> None:
    model, out = trained(), tmp_path / "scores"
    rows = Rows(model.tokenizer)
    write_rows(out, rows, iter(LINES[:3]), scorer(model))
    kept = out.read_bytes()
    for lines, sentence in (
        (LINES[1:4], "line 1 of .* is not the score of that line"),
        ([*LINES[:2], "A cat follows the tree!"], "line 3 of .* is not the score"),
        (["The dog hears the cat.", *LINES[1:3]], "line 1 of .* is not the score"),
        (LINES[:2], "more lines than the text, which has 2"),
    ):
        with pytest.raises(UserError, match=sentence):
            write_rows(out, rows, iter(lines), scorer(model))
    with pytest.raises(UserError, match=r"line 1 of .* is not the score"):
        write_rows(out, rows, iter(LINES[:3]), scorer(trained(loss="full")))
    with pytest.raises(UserError, match="no score of the kind asked for"):
        write_rows(out, Rows(model.tokenizer, as_json=True), iter(LINES[:3]), scorer(model))
    assert out.read_bytes() == kept


def test_memory_does_not_grow_with_the_number_of_lines(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python and numpy hold; a line and its score are a kilobyte."""
    monkeypatch.setattr(module, "POOL_LINES", 100)
    model = trained()
    rows = Rows(model.tokenizer)
    peaks = []
    for num_lines in (200, 200, 2000):
        lines = islice(chain.from_iterable(repeat(LINES)), num_lines)
        tracemalloc.start()
        write_rows(tmp_path / f"{len(peaks)}", rows, (f"{line} " for line in lines), scorer(model))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 100_000
