"""`thinwire eval` from outside."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
from collections.abc import Callable
from math import log2
from pathlib import Path

import pytest

import thinwire
from thinwire.cli.app import main
from thinwire.data.corpus import Corpus

Stdin = Callable[[bytes], None]
TEXT = "The cat sees the dog.\n\nThe bird, an xyzzy, follows the tree!\n"


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["eval", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_split(toy_run: Path, toy_data: Path, split: str, capsys) -> None:
    meta = Corpus.open(toy_data).meta.splits[split]
    found = evaluated(capsys, toy_run, *(["--split", "test"] if split == "test" else []))
    assert found["tokens_scored"] == meta.tokens
    assert found["tokens_unknown"] == meta.unknown
    assert found["characters"] == meta.characters
    assert found["bits_per_character"] == pytest.approx(
        log2(found["ppl"]) * meta.tokens / meta.characters
    )
    assert (found["run"], found["data"], found["split"]) == (str(toy_run), str(toy_data), split)
    assert found["step"] == thinwire.load(toy_run).loaded_step


def test_for_people(toy_run: Path, toy_data: Path, capsys) -> None:
    exact = evaluated(capsys, toy_run, "--data", toy_data)
    assert main(["eval", str(toy_run), "--data", str(toy_data)]) == 0
    shown = capsys.readouterr().out
    assert f"{exact['ppl']:.2f}" in shown
    assert f"{exact['tokens_scored']:,}" in shown


def test_a_text_however_it_comes(toy_run: Path, tmp_path: Path, stdin: Stdin, capsys) -> None:
    raw = TEXT.encode()
    files = {"t.txt": raw, "t.txt.gz": gzip.compress(raw), "t.txt.xz": lzma.compress(raw)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = [evaluated(capsys, toy_run, "--text", tmp_path / name) for name in files]
    stdin(raw)
    found.append(evaluated(capsys, toy_run, "--text", "-"))
    assert [one.pop("text") for one in found] == [*(str(tmp_path / name) for name in files), "-"]
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0]["characters"] == len(TEXT)
    assert found[0]["tokens_unknown"] == 2
    assert found[0]["split"] is None


def test_what_is_no_number_is_null(toy_run: Path, stdin: Stdin, capsys) -> None:
    stdin(b"xyzzy")
    assert evaluated(capsys, toy_run, "--text", "-")["ppl_known"] is not None  # the line's end
    model = thinwire.load(toy_run)
    from thinwire.cli.eval import _json
    from thinwire.inference.evaluate import Measured
    from thinwire.runs.evaluation import Evaluation

    inf, nan = float("inf"), float("nan")
    measured = Measured(Evaluation(inf, nan, 3, 3, 1e9), "x", None, 12)
    found = json.loads(_json(toy_run, model.loaded_step, measured, {}))
    assert found["ppl"] is None and found["ppl_known"] is None


def test_another_step(toy_run: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(toy_run, tmp_path / "run"))
    step = thinwire.load(run).loaded_step
    assert evaluated(capsys, run, "--step", step)["step"] == step


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--text", "gone.txt"], "there is no file gone.txt"),
        (["--text", "empty.txt"], "nothing to evaluate: empty.txt is empty"),
        (["--text", "binary.txt"], "binary.txt is no text file: there is a NUL byte in line 1"),
        (["--text", "latin.txt"], "latin.txt is not UTF-8: line 1 holds the byte 0xe9"),
        (["--text", "t.txt", "--split", "test"], "leave out --data and --split"),
        (["--text", "t.txt", "--data", "data"], "leave out --data and --split"),
        (["--data", "gone"], "gone is no data folder"),
        (["--split", "train"], "must be one of"),
        (["--step", "999999"], "holds no step 999999"),
        (["--threads", "0"], "0 threads were asked for"),
    ],
)
def test_what_the_user_can_mend(
    toy_run: Path, arguments: list[str], sentence: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"\0\1\2")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert main(["eval", str(toy_run), *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in " ".join(captured.err.split())


def test_a_folder_that_is_no_run(tmp_path: Path, capsys) -> None:
    assert main(["eval", str(tmp_path)]) == 2
    assert "is not a run folder" in " ".join(capsys.readouterr().err.split())
