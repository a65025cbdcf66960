"""The rules for text from any source: a file, a pipe, a prompt, or a string in Python.

- Its unit is the line, and only a line feed ends one. CR LF is a line feed.
- Any other sign that some programs take for a line end (a lone CR, U+0085, U+2028) is white space.
- A byte order mark at its beginning is no part of it.
- A NUL character, and what UTF-8 cannot hold (half of a surrogate pair, which is how Python shows a
  byte of a command line that is not UTF-8), are refused.

`thinwire.data.sources` does the same to files, as bytes.
"""

from __future__ import annotations

from thinwire.errors import UserError

BYTE_ORDER_MARK = "\ufeff"


def as_read(text: str, name: str = "the text") -> str:
    """A string as it would be read from a file; `name` is for messages.

    Raises:
        UserError: it holds what no text holds.
    """
    _check(text, name)
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n")


def lines_of(text: str, name: str = "the text") -> list[str]:
    """The lines of a text, without their ends; an empty text is one empty line.

    Raises:
        UserError: as `as_read`.
    """
    return as_read(text, name).removesuffix("\n").split("\n")


def one_line(line: str) -> str:
    """A line without its line end, which it may have or not.

    Raises:
        UserError: as `as_read`, or it is several lines.
    """
    _check(line, "the line")
    if line.endswith("\n"):
        line = line[:-1].removesuffix("\r")
    if "\n" in line:
        raise UserError("a line holds a line end: give every line on its own")
    return line


def _check(text: str, name: str) -> None:
    if (at := text.find("\0")) >= 0:
        raise UserError(f"{name} is no text: there is a NUL character in {_place(text, at)}")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} is not UTF-8: {_place(text, error.start)} holds {text[error.start]!a}"
        ) from None


def _place(text: str, at: int) -> str:
    return f"line {1 + text.count(chr(10), 0, at)}"
