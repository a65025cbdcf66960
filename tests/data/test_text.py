"""One meaning of text: a string is read as a file with the same content is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.data.sources import read_blocks
from thinwire.data.text import as_read, lines_of, one_line
from thinwire.errors import UserError


def test_what_ends_a_line_and_what_does_not() -> None:
    assert lines_of("\ufeffone\r\ntwo\n\nthree") == ["one", "two", "", "three"]
    assert lines_of("a\rb\u2028c\x85d\x0be\r\n") == ["a\rb\u2028c\x85d\x0be"]
    assert lines_of("a\n\ufeffb") == ["a", "\ufeffb"]
    assert as_read("\ufeffa\r\nb ") == "a\nb "
    assert [one_line(line) for line in ("a", "a\n", "a\r\n", "a\r", "")] == [
        "a",
        "a",
        "a",
        "a\r",
        "",
    ]


@given(text=st.text("a \r\n\ufeff\u2028\x85\té", min_size=1, max_size=30))
def test_a_string_is_read_as_a_file_is(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file: Path = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_bytes(text.encode())
    found = "".join(block.text() for block in read_blocks([file], lambda _: None))
    # A file without any text has no line, where a string has an empty one.
    expected = "" if text in ("", "\ufeff") else "".join(f"{line}\n" for line in lines_of(text))
    assert found == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a\nb\0", "is no text: there is a NUL character in line 2"),
        ("a\n\udcff", r"is not UTF-8: line 2 holds '\\udcff'"),
    ],
)
def test_refuses_what_no_text_holds(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        lines_of(text)
    with pytest.raises(UserError, match=sentence.replace("line 2", "line 1")):
        one_line(text[2:])


def test_refuses_two_lines_for_one() -> None:
    with pytest.raises(UserError, match="holds a line end"):
        one_line("a\nb")
