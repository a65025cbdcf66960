"""JSON that is damaged, or nested too deep, is said by whoever reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from thinwire.adapt.adapt import _read_about
from thinwire.data.corpus import Meta
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.files import MAX_DEPTH, parse_json, read_json
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.metrics import METRICS_FILE, read_metrics
from thinwire.runs.step_folder import CHECKSUMS, STATE, checksum
from thinwire.transport.keys import read_key

DEEP = ("[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500, '{"a":[' * 60 + "]}" * 60)


def nested(depth: int) -> Any:
    content: Any = 1
    for level in range(depth):
        content = [content, 2] if level % 2 else {"a": content, "b": 2}
    return content


def test_what_is_nested_as_ours_is_comes_back(tmp_path: Path) -> None:
    content = nested(MAX_DEPTH)
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == content
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json(json.dumps(nested(MAX_DEPTH + 1)))


@pytest.mark.parametrize("text", DEEP, ids=len)
def test_deeper_is_an_error_of_its_own(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deep|Expecting"):
        parse_json(text)


@pytest.mark.parametrize("text", DEEP, ids=len)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("meta.json", Meta.read),
        ("tokenizer.json", Tokenizer.load),
        ("key.json", read_key),
        ("adapt.json", lambda file: _read_about(file.parent)),
    ],
    ids=["meta", "tokenizer", "key", "adapt"],
)
def test_every_reader_says_it_in_a_sentence(
    name: str, read: Callable[[Path], object], text: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    with pytest.raises(UserError, match=name.partition(".")[0]):
        read(file)


@pytest.mark.parametrize("text", DEEP, ids=len)
def test_a_state_that_is_nested_too_deep_is_passed_over(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checksum may be right all the same."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"model": {"weight": torch.ones(3)}}, {"step": step})
    checkpoints.wait()
    (tmp_path / "step-2" / STATE).write_text(text, encoding="utf-8")
    manifest = tmp_path / "step-2" / CHECKSUMS
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["files"][STATE] = checksum(tmp_path / "step-2" / STATE)
    manifest.write_text(json.dumps(content), encoding="utf-8")
    assert Checkpoints(tmp_path).load().step == 1
    assert "step 2 is damaged and passed over" in capsys.readouterr().err
    manifest.write_text(text, encoding="utf-8")
    assert Checkpoints(tmp_path).load().step == 1


def test_metrics_that_thinwire_does_not_write(tmp_path: Path) -> None:
    file, line = tmp_path / METRICS_FILE, '{"event": "train", "step": 1}'
    file.write_text("\n".join([line, *DEEP, "1" * 5000]), encoding="utf-8")
    assert read_metrics(tmp_path) == [{"event": "train", "step": 1}]
    for content in (
        b"[]",
        b"3",
        b'{"step": 1}',
        b'{"event": "train"}\n{"event": "resume"}',
        b"\xff",
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
            read_metrics(tmp_path)
