"""The snippets of README and docs run, and their links lead somewhere.

A block of ```bash or ```python runs when `<!-- run -->` stands on the line before it. The blocks of
a page run in their order in one folder, which holds at first a small `book.txt` only.

    <!-- run: 600 => 2; model.width 512 => model.width 16 -->   replaces text before running
    <!-- given: data run -->        from here on there is a data folder, and a run that used it
    <!-- given: wandb.py -->        from here on `import wandb` finds that of tests/stand_ins
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BENCHMARKS = ROOT / "benchmarks/README.md"
STAND_INS = ROOT / "tests/stand_ins"
STEP = re.compile(
    r"<!-- given: (?P<given>.*?) -->"
    r"|<!-- run(?:: (?P<swaps>.*?))? -->\n+```(?P<language>bash|python)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#\s]+)(?:#[^)]*)?\)")


def steps(page: Path) -> list[tuple[str, str]]:
    """("given", names) and (language, code) of what is to run, replacements made."""
    found = []
    for match in STEP.finditer(page.read_text(encoding="utf-8")):
        if match["given"]:
            found.append(("given", match["given"]))
            continue
        code = match["code"]
        for swap in filter(None, (match["swaps"] or "").split(";")):
            old, new = (side.strip() for side in swap.split("=>"))
            assert old in code, f"{page.name}: nothing to replace, no {old!r} in\n{code}"
            code = code.replace(old, new)
        found.append((match["language"], code))
    return found


def command(language: str, code: str) -> list[str]:
    if language == "python":
        return [sys.executable, "-W", "error", "-c", code]
    shell = f'thinwire() {{ "{sys.executable}" -m thinwire "$@"; }}\n{code}'
    return ["bash", "-euo", "pipefail", "-c", shell]


@pytest.mark.parametrize("page", [p for p in PAGES if steps(p)], ids=lambda page: page.name)
def test_snippets_run(page: Path, book: Path, toy_data: Path, toy_run: Path) -> None:
    given = {"data": toy_data, "run": toy_run}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for language, code in steps(page):
        if language == "given":
            for name in code.split():
                if name in given:
                    shutil.copytree(given[name], book.parent / name)
                else:
                    shutil.copyfile(STAND_INS / name, book.parent / name)
            continue
        done = subprocess.run(
            command(language, code),
            cwd=book.parent,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    "page", [*PAGES, BENCHMARKS], ids=lambda page: page.parent.name + page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_page_of_the_benchmarks_has_their_tables() -> None:
    page = BENCHMARKS.read_text(encoding="utf-8")
    names = sorted(set(re.findall(r"\(results/([\w-]+)\.md\)", page)))
    results = BENCHMARKS.parent / "results"
    lines = [
        line for name in names for line in (results / f"{name}.md").read_text("utf-8").splitlines()
    ]
    rows = [line for line in lines if line.startswith("|")]
    assert len(names) > 15
    assert [row for row in rows if f"\n{row}\n" not in page] == [], (
        "python -m benchmarks.record.tables"
    )


def test_every_page_is_in_the_menu() -> None:
    menu = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(menu) == [page.name for page in PAGES[1:]]


def test_the_page_of_the_settings_is_current() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import settings_page; print(settings_page.page(), end='')"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert made.stdout == page, "python scripts/settings_page.py"
