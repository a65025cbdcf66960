"""Puts every table of the record into README.md, below its mark, in the order of its questions.

    python -m benchmarks.record.tables

Every benchmark does so as it ends.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
README, RESULTS = HERE / "README.md", HERE / "results"
MARK = "<!-- What follows is written by record/tables.py. -->\n"
TABLE = re.compile(r"\]\(results/([\w-]+)\.md\)")
LINK = re.compile(r"\]\((?!https?:)")
HEADING = re.compile(r"^(?=#+ )", re.MULTILINE)


def main() -> None:
    """Write README.md anew."""
    introduction, _, _ = README.read_text(encoding="utf-8").partition(MARK)
    names = dict.fromkeys(TABLE.findall(introduction))
    tables = [table(name) for name in names if (RESULTS / f"{name}.md").exists()]
    README.write_text("\n".join([introduction + MARK, *tables]), encoding="utf-8")


def table(name: str) -> str:
    """results/NAME.md as a section of README.md."""
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    return HEADING.sub("#", LINK.sub("](results/", text))


if __name__ == "__main__":
    main()
