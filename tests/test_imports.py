"""What starts without torch, and the public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import thinwire
from thinwire.cli.app import VERBS

TORCH_FREE = [
    "thinwire",
    "thinwire.config",
    "thinwire.data.corpus",
    "thinwire.data.fetch",
    "thinwire.data.prepare",
    "thinwire.launch.local",
    "thinwire.launch.start",
    "thinwire.cli.app",
    *(verb.function.partition(":")[0] for verb in VERBS.values()),
]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_starts_without_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@pytest.mark.parametrize("name", thinwire.__all__)
def test_public_name_is_what_it_says(name: str) -> None:
    value = getattr(thinwire, name)
    assert name == "__version__" or value.__name__ == name
    assert name in dir(thinwire)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(thinwire.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert seen == thinwire._HOME
    assert {*seen, "__version__"} == set(thinwire.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sampel'"):
        _ = thinwire.Sampel
