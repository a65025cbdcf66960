"""A trained model on splits and on texts."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import pytest

import thinwire
from thinwire.data.corpus import Corpus
from thinwire.data.prepare import prepare
from thinwire.errors import UserError
from thinwire.inference.evaluate import evaluate_split, evaluate_text
from thinwire.training.loop import train


@pytest.fixture
def elsewhere(trained, tmp_path: Path):
    """Move the run's own data folder."""
    return lambda path: replace(trained(), run=replace(trained().run, data=path))


def test_a_split_is_scored_whole(trained, toy_data: Path) -> None:
    model, meta = trained(), Corpus.open(toy_data).meta
    found = evaluate_split(model, None, "valid")
    assert found.evaluation.tokens_scored == meta.splits["valid"].tokens
    assert found.evaluation.tokens_unknown == meta.splits["valid"].unknown
    assert found.num_characters == meta.splits["valid"].characters
    assert found.bits_per_character == pytest.approx(
        log(found.evaluation.ppl, 2) * found.evaluation.tokens_scored / found.num_characters
    )
    assert evaluate_split(model, toy_data, "valid") == found
    assert (
        evaluate_split(model, None, "test").evaluation.tokens_scored == meta.splits["test"].tokens
    )


def test_a_text_is_scored_as_a_split_of_it_is(trained, toy_data: Path, tmp_path: Path) -> None:
    model, text = trained(), toy_data.parent / "book.txt"
    lines = text.read_text().splitlines(keepends=True)[:300]
    (tmp_path / "some.txt").write_text("".join(lines))
    found = evaluate_text(model, str(tmp_path / "some.txt"))
    data = prepare(
        [str(text)], out=tmp_path / "data", valid=str(tmp_path / "some.txt"),
        tokenizer=str(model.run.tokenizer_file), num_processes=1,
    )  # fmt: skip
    ids = data.ids("valid")
    assert found.evaluation == model.evaluate(ids)
    assert found.num_characters == data.meta.splits["valid"].characters == sum(map(len, lines))


def test_another_folder_with_the_same_tokenizer(
    trained, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = trained(), str(toy_data.parent / "book.txt")
    other = prepare(
        [text],
        out=tmp_path / "other",
        valid=0.0,
        test=0.2,
        tokenizer=str(model.run.tokenizer_file),
        num_processes=1,
    )
    found = evaluate_split(model, other.path, "test").evaluation
    assert found == model.evaluate(other.ids("test"))
    assert "other is not what" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match=r"the valid split of .*other is empty"):
        evaluate_split(model, other.path, "valid")


def test_another_tokenizer_is_refused(trained, toy_data: Path, tmp_path: Path) -> None:
    text = str(toy_data.parent / "book.txt")
    other = prepare([text], out=tmp_path / "data", vocab_size=50, num_processes=1)
    with pytest.raises(UserError, match="prepared with another tokenizer"):
        evaluate_split(trained(), other.path, "valid")


def test_data_that_is_gone(elsewhere, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which is not there any more"):
        evaluate_split(elsewhere(tmp_path / "gone"), None, "valid")
    with pytest.raises(UserError, match="is no data folder"):
        evaluate_split(elsewhere(tmp_path / "gone"), tmp_path, "valid")


def test_an_empty_text(trained, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"nothing to evaluate: .*empty"):
        evaluate_text(trained(), str(tmp_path / "empty.txt"))
    (tmp_path / "lines.txt").write_text("\n\n")
    assert evaluate_text(trained(), str(tmp_path / "lines.txt")).evaluation.tokens_scored == 2
    with pytest.raises(UserError, match="there is no file"):
        evaluate_text(trained(), str(tmp_path / "gone.txt"))


def test_a_literal_end_of_line_means_the_same_to_evaluation_and_scores(
    tmp_path: Path, tiny
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the <s> cat </s> sees <unk> the dog .\n</s> the dog\n" * 100)
    prepare([str(text)], out=tmp_path / "data", tokenizer="space", valid=0.1, num_processes=1)
    settings = {"run": {"tokens": 2000, "threads": 1}, "data": {"batch": 4, "context": "line"}}
    train(tmp_path / "data", tmp_path / "run", tiny(**settings))
    model = thinwire.load(tmp_path / "run")
    found = evaluate_text(model, str(text)).evaluation
    score = model.score(text.read_text())
    assert (found.tokens_scored, found.tokens_unknown) == (1400, 300)
    assert (score.num_tokens, score.num_unknown) == (1400, 300)
    assert -score.logprob == pytest.approx(found.nats, rel=1e-5)
