"""A body of the user's own: trained, found again by every command, and held to the contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import thinwire
from thinwire.export.export import export
from thinwire.runs.folder import RunFolder

SOURCE = '''
import torch
from torch import Tensor, nn

from thinwire import Body, ModelConfig


class Average(Body):
    """A decaying average of the embeddings."""

    carries_state = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mix = nn.Linear(config.input_width, config.width)

    def initialise(self, generator):
        nn.init.normal_(self.mix.weight, 0.0, 0.3, generator=generator)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x_BTE, state, dropout):
        (sum_BE,) = state or (torch.zeros_like(x_BTE[:, 0]),)
        sums = []
        for x_BE in x_BTE.unbind(1):
            sum_BE = 0.5 * sum_BE + x_BE
            sums.append(sum_BE)
        return self.mix(torch.stack(sums, 1)).tanh(), (sum_BE,)


class Abstract(Body):
    carries_state = True


class Silent(Average):
    carries_state = None


class Ahead(Average):
    def forward(self, x_BTE, state, dropout):
        hidden_BTD, after = super().forward(x_BTE, state, dropout)
        return hidden_BTD + hidden_BTD.mean(1, keepdim=True), after


class Narrow(Average):
    def forward(self, x_BTE, state, dropout):
        hidden_BTD, after = super().forward(x_BTE, state, dropout)
        return hidden_BTD[:, :, 1:], after


class Stateless(Average):
    carries_state = False


class Window(Body):
    """Sees a window, and keeps nothing of it."""

    carries_state = False

    def __init__(self, config):
        super().__init__()
        self.mix = nn.Linear(config.input_width, config.width)

    def initialise(self, generator):
        nn.init.normal_(self.mix.weight, 0.0, 0.3, generator=generator)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x_BTE, state, dropout):
        return self.mix(x_BTE.cumsum(1)).tanh(), ()


class Other:
    pass
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`own_bodies.models` can be imported, here and by other processes."""
    package = tmp_path / "path" / "own_bodies"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=":")
    yield
    for name in [name for name in sys.modules if name.startswith("own_bodies")]:
        del sys.modules[name]


def kind(name: str) -> str:
    return f"own_bodies.models:{name}"


SMALL = {"data": {"batch": 4, "length": 7}, "loss": {"samples": 20}, "threads": 1}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("name", ["Average", "Window"])
def test_is_trained_saved_and_found_again(
    name: str,
    toy_data: Path,
    tmp_path: Path,
    thinwire: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    import thinwire as face

    run = tmp_path / "run"
    settings = {"kind": kind(name), "width": 12, "embedding_width": 8}
    model = face.train(toy_data, run, tokens=2000, model=settings, **SMALL)
    assert type(model.model.body).__name__ == name
    assert f'kind = "{kind(name)}"' in (run / "config.toml").read_text(encoding="utf-8")
    assert RunFolder.open(run).config.model.kind == kind(name)
    assert kind(name) in repr(model)
    # Steps over a line are its score, whatever the body; longer than its window, too.
    line = "The cat sees the dog. " * 3
    state, total = model.start(), 0.0
    for id in [*model.tokenizer.encode(line), model.tokenizer.eos_id]:
        state, logp = model.step(state, id)
        total += logp
    assert total == pytest.approx(model.score(line).logprob, rel=1e-5)
    for command in (["eval", run], ["generate", run, "--prompt", "The"]):
        done = thinwire(*command)
        assert done.returncode == 0, done.stderr
    before, after = (model.model.by_name(), face.load(run).model.by_name())
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Exported where the format can hold it.
    export(model, "words", tmp_path / "words")
    for form in ("onnx", "icefall", "hf"):
        with pytest.raises(face.UserError, match=name):
            export(model, form, tmp_path / form)  # type: ignore[arg-type]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ("own_bodies.none:Average", "cannot be imported .*none.*PYTHONPATH"),
        ("own_bodies.models:Nothing", "cannot be imported .*Nothing"),
        (":Average", "cannot be imported"),
        ("__main__:Average", "put the class into a module of its own"),
        (kind("Other"), "no thinwire.Body"),
        (kind("Abstract"), "does not define forward, initialise"),
        (kind("Silent"), "does not say whether it carries_state"),
        (kind("Ahead"), "looks ahead"),
        (kind("Narrow"), r"hidden states \[2, 3, 11\] .*must return \[2, 3, 12\]"),
        (kind("Stateless"), "says that it carries none"),
    ],
)
def test_refused(of: str, sentence: str, toy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(thinwire.UserError, match=sentence):
        thinwire.train(toy_data, tmp_path / "run", model={"kind": of, "width": 12}, **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("own")
def test_a_run_whose_class_is_gone_says_so(toy_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    thinwire.train(toy_data, run, tokens=300, model={"kind": kind("Average"), "width": 8}, **SMALL)
    config = run / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace(":Average", ":Gone"))
    with pytest.raises(thinwire.UserError, match="cannot be imported"):
        thinwire.load(run)
