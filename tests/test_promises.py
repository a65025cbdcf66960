"""The tests that the docs name for what they promise are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
NAMED = re.compile(r"`(?P<file>[\w/]*test_\w+\.py)::(?P<test>\w+)`")
ROW = re.compile(r"^\|(?P<cells>.*)\|$", re.MULTILINE)
# Where a page says in which folder its tests are.
FOLDERS = {"asynchronous.md": "parameter_server"}


def named(page: Path) -> list[tuple[str, str]]:
    """The tests that a page names, each with its file below `tests/`."""
    found = []
    for match in NAMED.finditer(page.read_text(encoding="utf-8")):
        file = match["file"]
        folder = FOLDERS.get(page.name, "")
        found.append((file if "/" in file or not folder else f"{folder}/{file}", match["test"]))
    return found


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its heading."""
    return [[cell.strip() for cell in match["cells"].split("|")] for match in ROW.finditer(text)][
        2:
    ]


@pytest.mark.parametrize(
    ("page", "least"), [("checkpoints.md", 20), ("asynchronous.md", 15)], ids=lambda x: str(x)
)
def test_every_test_that_is_named_exists(page: str, least: int) -> None:
    found = named(DOCS / page)
    assert len(found) >= least
    for file, test in found:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert test in defined, f"{page} names {test}, which is not in {file}"


def test_every_loss_that_is_promised_has_its_tests() -> None:
    text = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    section = text.partition("## What is lost when")[2].partition("\n## ")[0]
    promises, tests = (rows(part) for part in re.split(r"\n\nAfter a kill", section))
    assert len(promises) == len(tests) == 9
    for promise, held in zip(promises, tests, strict=True):
        for said, by in zip(promise[1:], held[1:], strict=True):
            nobody = said in ("there are no servers", "the connection handles it")
            assert nobody == (not by), f"{promise[0]}: {said!r} is held by {by!r}"
            assert nobody or by == "the same" or NAMED.search(by)
