"""What is loaded is what was saved, and what does not fit is a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import thinwire
from thinwire.errors import UserError
from thinwire.runs.checkpoints import Checkpoints


@pytest.fixture
def run(trained, tmp_path: Path) -> Path:
    """A copy of a run, to be spoilt."""
    return Path(shutil.copytree(trained().run.path, tmp_path / "run"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True},
        {"loss": "full"},
        {"loss": "nce"},
        {"loss": "adaptive"},
        {"kind": "transformer"},
        {"kind": "causal_conv"},
    ],
    ids=str,
)
def test_all_parameters_are_those_saved(trained, settings: dict) -> None:
    loaded = trained(**settings)
    saved = Checkpoints(loaded.run.path).load(loaded.loaded_step).open("model")
    found = {**loaded.model.tables(), **loaded.model.blocks()}
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[name], found[name]) for name in saved)
    assert (loaded.model.output.tables().get("weight") is loaded.model.embedding.weight) == bool(
        settings.get("tied")
    )


def test_it_repeats_the_validation_of_training(trained) -> None:
    loaded = trained()
    lines = (loaded.run.path / "metrics.jsonl").read_text().splitlines()
    recorded = [line for line in map(json.loads, lines) if line["event"] == "valid"]
    ids = thinwire.Corpus.open(loaded.run.data).ids("valid")
    assert loaded.evaluate(ids).ppl == pytest.approx(recorded[-1]["ppl"], rel=1e-6)


def test_the_best_step_unless_another_is_asked_for(run: Path) -> None:
    checkpoints = Checkpoints(run)
    step = checkpoints.newest
    assert step is not None
    saved = checkpoints.load(step)
    tensors = {"model": saved.open("model")}
    checkpoints.save(step + 1, tensors, {}, best=True)
    checkpoints.save(step + 2, tensors, {})
    checkpoints.wait()
    assert thinwire.load(run).loaded_step == step + 1
    assert thinwire.load(str(run), step=step + 2).loaded_step == step + 2
    with pytest.raises(UserError, match=f"holds no step 7, only: .*{step + 2}"):
        thinwire.load(run, 7)


def test_a_damaged_step_is_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = Checkpoints(run).newest
    file = run / f"step-{step}" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"Step {step} .* is damaged"):
        thinwire.load(run, step)
    with pytest.raises(UserError, match="no whole checkpoint"):
        thinwire.load(run)
    assert f"step {step} is damaged" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        thinwire.load(tmp_path)


def test_a_run_without_a_step(run: Path) -> None:
    for step in run.glob("step-*"):
        shutil.rmtree(step)
    with pytest.raises(UserError, match="holds no checkpoint"):
        thinwire.load(run)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda vocab: {**vocab, "aardvark": len(vocab)}, r"it has \d+ words, and the model has"),
        (
            lambda vocab: {**vocab, "</s>": vocab["The"], "The": vocab["</s>"]},
            r"for the id of the end of a line",
        ),
    ],
)
def test_a_tokenizer_of_another_model(run: Path, change, sentence: str) -> None:
    file = run / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = change(content["model"]["vocab"])
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        thinwire.load(run)


def test_settings_of_another_model(run: Path) -> None:
    file = run / "config.toml"
    file.write_text(file.read_text().replace("width = 16", "width = 24", 1))
    with pytest.raises(UserError, match=r"16\] in .*step-\d+, but the model has .*24"):
        thinwire.load(run)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_bytes(b"{}")])
def test_counts_that_are_gone_or_damaged(run: Path, spoil) -> None:
    spoil(run / "counts.safetensors")
    with pytest.raises(UserError, match=r"counts\.safetensors is missing or damaged"):
        thinwire.load(run)


def test_where_to_compute(run: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no such device"):
            thinwire.load(run, device="cuda")
    with pytest.raises(UserError, match="no device 'gpu'"):
        thinwire.load(run, device="gpu")
    with pytest.raises(UserError, match="0 threads"):
        thinwire.load(run, threads=0)
    with pytest.raises(UserError, match=r"must be .* or fewer on"):
        thinwire.load(run, threads=2**63 - 1)
    thinwire.load(run, device="cpu", threads=1)
