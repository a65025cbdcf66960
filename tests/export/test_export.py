from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from thinwire.cli.app import main
from thinwire.errors import UserError
from thinwire.export import export as module
from thinwire.export.export import export

from .conftest import Trained


def test_words_and_counts(trained: Trained, tmp_path: Path) -> None:
    model = trained()
    assert main(["export", str(model.run.path), "--to", "words", "--out", str(tmp_path / "o")]) == 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["counts.txt", "words.txt"]
    words = [line.split(" ") for line in (tmp_path / "o/words.txt").read_text("utf-8").splitlines()]
    assert [int(id) for _, id in words] == list(range(model.model.vocab_size))
    assert words[model.tokenizer.eos_id][0] == "</s>"
    lines = (tmp_path / "o/counts.txt").read_text("utf-8").splitlines()
    counts = {word: int(count) for word, count in (line.split(" ") for line in lines)}
    assert sum(counts.values()) == int(model.run.counts_V().sum())
    assert list(counts) == [word for word, _ in words]


def test_what_is_there_stays(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        export(trained(), "words", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_an_empty_folder_is_filled(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(trained(), "words", tmp_path / "out")
    assert (tmp_path / "out/words.txt").exists()


def test_int8_is_for_onnx(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--int8 has no meaning with --to hf"):
        export(trained(), "hf", tmp_path / "out", int8=True)


def test_a_missing_package_is_named(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package onnx: pip install onnx"):
        export(trained(), "onnx", tmp_path / "out")


@pytest.mark.parametrize("to", ["onnx", "hf", "icefall"])
@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_formats_without_n_grams_refuse_them(
    trained: Trained, tmp_path: Path, to: str, kind: str
) -> None:
    model = trained(kind=kind, ngrams=2, ngram_rows=50)
    with pytest.raises(
        UserError, match=r"no place for n-grams|holds LSTM models|needs the package"
    ):
        export(model, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(model, "words", tmp_path / "words")


def test_the_command_refuses(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(trained(kind="transformer").run.path)
    assert main(["export", run, "--to", "icefall", "--out", str(tmp_path / "out")]) == 2
    assert "icefall's checkpoint holds LSTM models, and this one is a Transformer" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("to", ["words", "icefall", "hf", "onnx"])
def test_a_full_disk_is_said_and_leaves_nothing(trained: Trained, tmp_path: Path, to: str) -> None:
    """Full at several bytes of the export; in a process of its own, for pytest writes, too."""
    if to == "onnx":
        pytest.importorskip("onnx")
    program = f"""
import resource, shutil
from pathlib import Path
from thinwire.cli.app import main
run, out = {str(trained().run.path)!r}, Path({str(tmp_path / "out")!r})
# First without a limit: PyTorch cannot be imported where no file can be written.
assert main(["export", run, "--to", {to!r}, "--out", {str(tmp_path / "first")!r}]) == 0
for size in (0, 100, 1110, 5000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    print(main(["export", run, "--to", {to!r}, "--out", str(out)]), out.exists(), flush=True)
    shutil.rmtree(out, ignore_errors=True)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in done.stderr and done.returncode == 0, done.stderr
    results = [line for line in done.stdout.splitlines() if line[:2] in ("0 ", "2 ", "1 ")]
    assert results[:2] == ["2 False"] * 2 and set(results) <= {"2 False", "0 True"}
    assert "thinwire: " in done.stderr
