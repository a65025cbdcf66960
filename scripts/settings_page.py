"""Writes docs/settings.md from the settings' own docstrings: python scripts/settings_page.py."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

from thinwire.config import RunConfig

PAGE = Path(__file__).parents[1] / "docs/settings.md"
HEAD = """# Settings

Every setting of a run, with its default. `scripts/settings_page.py` writes this page. On the
command line a setting is `--section.key VALUE`; in a TOML file it is a key below `[section]`. A
flag that is true or false may stand alone (`--model.tied`), take a value (`--model.tied false`) or
be negated (`--no-model.tied`).

Some settings have a short flag: `--seconds`, `--tokens`, `--epochs`, `--seed`, `--threads`,
`--workers` and `--device` of `[run]`; `--exchange` (its `kind`), `--select`, `--codec` and
`--check-replicas` of `[exchange]`.
"""


def docstrings(made: type) -> dict[str, str]:
    """The sentence that follows each field of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(made))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: " ".join(after.value.value.split())
        for field, after in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


def values(hint: Any) -> str:
    """What a setting takes."""
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    if hint in names:
        return names[hint]
    parts = get_args(hint)
    if all(isinstance(part, str) for part in parts):
        return ", ".join(f"`{part}`" for part in parts)
    return ", ".join(values(part) for part in parts if part is not type(None))


def default(value: Any) -> str:
    """A default as a settings file has it."""
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    config = RunConfig()
    for section, made in get_type_hints(RunConfig).items():
        rows = [
            f"| `{key}` | {values(hint)} | {default(getattr(getattr(config, section), key))} "
            f"| {docstrings(made)[key].replace('|', chr(92) + '|')} |\n"
            for key, hint in get_type_hints(made).items()
        ]
        heading = f"\n## `[{section}]`\n\n| key | values | default | meaning |\n|---|---|---|---|\n"
        parts.append(heading + "".join(rows))
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
