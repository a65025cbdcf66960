"""The examples in the docstrings of the public names run, and every public name has one."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import thinwire

NAMES = [name for name in thinwire.__all__ if name != "__version__"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What examples find in the current folder: the data folder `data`, the run `run`."""
    path = tmp_path_factory.mktemp("examples")
    lines = ["the cat sees a dog", "a dog hears the cat", "the bird sees the bird"] * 300
    data = thinwire.prepare(lines=lines, out=path / "data", valid=0.05)
    model = {"width": 8, "layers": 1}
    thinwire.train(data, path / "run", tokens=2_000, threads=1, model=model)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    docstring = inspect.getdoc(getattr(thinwire, name)) or ""
    example = doctest.DocTestParser().get_doctest(docstring, {}, name, None, None)
    assert example.examples, f"{name} has no example"
    failed, tried = doctest.DocTestRunner(verbose=False).run(example)
    assert (failed, tried) == (0, len(example.examples)), capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [name for name in NAMES if inspect.isfunction(getattr(thinwire, name))]
)
def test_a_public_function_says_what_it_takes_returns_and_raises(name: str) -> None:
    function = getattr(thinwire, name)
    docstring = inspect.getdoc(function) or ""
    for section in ("Args:", "Returns:", "Raises:", "Examples:"):
        assert f"\n{section}\n" in docstring
    told = docstring.partition("Args:\n")[2].partition("\n\n")[0]
    for parameter in inspect.signature(function).parameters:
        assert f"    {parameter}: " in told
