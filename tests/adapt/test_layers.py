"""Adaptation layers: the identity at first, all else frozen, small files that share a base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import thinwire
from thinwire.cli.app import main
from thinwire.errors import UserError
from thinwire.models.adapters import Adapter
from thinwire.runs.adapter_file import AdapterFile
from thinwire.runs.checkpoints import Checkpoints
from thinwire.training.loop import train

Adapt = Callable[..., Any]
TEXT = "The cat sees the dog."


@pytest.fixture
def base(toy_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_run, tmp_path / "base"))


def test_a_layer_starts_as_the_identity() -> None:
    x_BTD = torch.randn(2, 3, 5)
    assert torch.equal(Adapter(5)(x_BTD), x_BTD)


@pytest.mark.parametrize("input_layers", [False, True])
def test_only_layers_and_output_biases_are_trained(
    input_layers: bool, base: Path, adapted: Adapt, tmp_path: Path
) -> None:
    account = adapted("law", base=base, method="layers", input_layers=input_layers)
    assert account.new.after.ppl < 0.6 * account.new.before.ppl
    out = thinwire.load(tmp_path / "law")
    step = Checkpoints(tmp_path / "law").load("best").path
    names = {"output.bias", "output_adapter.weight", "output_adapter.bias"}
    names |= {"input_adapter.weight", "input_adapter.bias"} if input_layers else set()
    assert set(load_file(step / "model.safetensors")) == names
    before = thinwire.load(base).model.by_name()
    for name, parameter in out.model.by_name().items():
        if name not in names:
            assert torch.equal(parameter, before[name]), name
        elif name in before:
            assert not torch.equal(parameter, before[name]), name


def test_layers_of_a_base_trained_in_bf16(
    toy_data: Path, tmp_path: Path, adapted: Adapt, tiny: Any
) -> None:
    run = {"tokens": 3000, "threads": 1, "precision": "bf16"}
    train(toy_data, tmp_path / "base", tiny(run=run, model={"kind": "transformer"}))
    account = adapted("law", base=tmp_path / "base", method="layers")
    assert account.new.after.ppl < 0.8 * account.new.before.ppl
    assert thinwire.load(tmp_path / "law").run.config.run.precision == "bf16"
    before = thinwire.load(tmp_path / "base").model.by_name()
    for name, parameter in thinwire.load(tmp_path / "law").model.by_name().items():
        if name in before and name != "output.bias":
            assert torch.equal(parameter, before[name]), name


def test_several_sets_share_a_base_by_name(
    base: Path, adapted: Adapt, tmp_path: Path, new_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted("law", base=base, method="layers")
    adapted("press", base=base, method="layers", tokens=1500, input_layers=True)
    plain = thinwire.load(base).score(TEXT)
    for name in ("law", "press"):
        found = thinwire.load(base, adapter=name).score(TEXT)
        assert found == thinwire.load(tmp_path / name).score(TEXT)
        assert found != plain
    capsys.readouterr()
    assert main(["eval", str(base), "--adapter", "law", "--text", str(new_text), "--json"]) == 0
    ppl = json.loads(capsys.readouterr().out)["ppl"]
    assert main(["eval", str(tmp_path / "law"), "--text", str(new_text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ppl"] == ppl
    assert main(["score", str(base), str(new_text), "--adapter", "press"]) == 0
    assert main(["generate", str(base), "--tokens", "3", "--adapter", "press"]) == 0


def test_a_name_that_is_taken_or_does_not_exist(base: Path, adapted: Adapt, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are none beside it"):
        thinwire.load(base, adapter="law")
    adapted("law", base=base, method="layers", tokens=500)
    with pytest.raises(UserError, match="did you mean law"):
        thinwire.load(base, adapter="low")
    with pytest.raises(UserError, match="name no step"):
        thinwire.load(base, 1, adapter="law")
    shutil.rmtree(tmp_path / "law")
    with pytest.raises(UserError, match="has an adapter 'law' already"):
        adapted("law", base=base, method="layers")


def test_another_base_and_a_damaged_file_are_refused(base: Path, adapted: Adapt) -> None:
    adapted("law", base=base, method="layers", tokens=500)
    layers = AdapterFile.open(base, "law")
    AdapterFile(layers.parameters, "output", layers.step, "9 bytes with CRC 0").save(base, "other")
    with pytest.raises(UserError, match="9 bytes with CRC 0"):
        thinwire.load(base, adapter="other")
    path = AdapterFile.path(base, "law")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="is damaged"):
        thinwire.load(base, adapter="law")


@pytest.mark.parametrize(
    "model",
    [
        {"tied": True},
        {"kind": "transformer", "heads": 2},
        {"layers": 2, "dropout": 0.2},
        {"ngrams": 3, "ngram_rows": 100},
    ],
    ids=["tied", "transformer", "deep", "n-grams"],
)
@pytest.mark.parametrize("loss", ["sampled", "full", "nce"])
def test_other_models(
    model: dict[str, Any], loss: str, tiny: Any, toy_data: Path, adapted: Adapt, tmp_path: Path
) -> None:
    from thinwire.training.loop import train

    config = tiny(run={"tokens": 560}, model={"width": 16, **model}, loss={"kind": loss})
    train(toy_data, tmp_path / "base", config)
    account = adapted("law", base=tmp_path / "base", method="layers", tokens=1500, lr=5e-3)
    assert account.new.after.ppl < account.new.before.ppl


def test_adaptive_has_no_biases(tiny: Any, toy_data: Path, adapted: Adapt, tmp_path: Path) -> None:
    from thinwire.training.loop import train

    config = tiny(run={"tokens": 560}, model={"width": 64}, loss={"kind": "adaptive"})
    train(toy_data, tmp_path / "base", config)
    with pytest.raises(UserError, match="no output biases"):
        adapted("law", base=tmp_path / "base", method="layers")
    with pytest.raises(UserError, match="no words can be added"):
        adapted("law", base=tmp_path / "base", new_words=2)
    assert adapted("on", base=tmp_path / "base", tokens=500).new.after.ppl > 1
