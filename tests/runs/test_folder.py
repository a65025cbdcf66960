"""A run folder says again what it was told, wherever it lies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.runs.folder import CONFIG_FILE, RunFolder

Settings = Callable[..., RunConfig]


@pytest.mark.parametrize(
    "name", ["plain", 'a "quoted" one', "back\\slash", "[bold]", "ü 中 🦜", "#"]
)
def test_opens_as_it_was_made(name: str, toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    data = tmp_path / name
    shutil.copytree(toy_data, data)
    corpus, run = Corpus.open(data), tmp_path / "runs" / name
    made = RunFolder.create(run, tiny(model={"tied": True}), corpus)
    assert RunFolder.open(run) == made
    assert made.data == data.resolve()
    assert torch.equal(made.counts_V(), torch.from_numpy(corpus.counts_V))
    assert made.tokenizer_file.read_bytes() == corpus.tokenizer_file.read_bytes()


def test_a_planned_run_is_none_yet(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    RunFolder.planned(tmp_path / "run", tiny(), Corpus.open(toy_data))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is not a run folder: it has no config.toml"),
        ("[model]\n", "does not say which data folder it was used on"),
        ("[corpus]\npath = 'x'\n", "does not say which data folder it was used on"),
        ("[model\n", "is not valid TOML"),
        (
            "[model]\nwidht = 3\n[corpus]\npath = 'x'\nfingerprint = 'x'\neos_id = 0\n",
            "widht; did you mean width?",
        ),
    ],
)
def test_what_is_no_run(content: str | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(UserError, match=sentence):
        RunFolder.open(tmp_path)


def test_a_file_is_no_place_for_a_run(toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="run is a file, and a run needs a folder"):
        RunFolder.planned(tmp_path / "run", tiny(), Corpus.open(toy_data))


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_damaged_counts(damage: str, toy_data: Path, tmp_path: Path, tiny: Settings) -> None:
    made = RunFolder.create(tmp_path / "run", tiny(), Corpus.open(toy_data))
    file = tmp_path / "run" / "counts.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match=r"counts\.safetensors is missing or damaged"):
        made.counts_V()
