"""A run's key: made once, for its owner's eyes only."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from thinwire.errors import UserError
from thinwire.transport.keys import read_key, read_or_make_key


def test_is_made_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "key"
    key, made = read_or_make_key(file)
    assert made and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_or_make_key(file) == (key, False)
    assert read_key(file) == key
    assert read_or_make_key(tmp_path / "other")[0] != key


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "key"
    read_or_make_key(file)
    file.chmod(mode)
    for read in (read_key, read_or_make_key):
        with pytest.raises(UserError, match=f"has mode {mode:04o}, so others may read the key"):
            read(file)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"public": 1, "secret": 2}',
        json.dumps({"public": "x" * 40, "secret": "y" * 40}),
        json.dumps({"public": "short", "secret": "short"}),
    ],
)
def test_what_is_no_key_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(content, encoding="utf-8")
    file.chmod(0o600)
    with pytest.raises(UserError, match="is no key that thinwire serve has written"):
        read_key(file)


def test_no_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no key file"):
        read_key(tmp_path / "key")
