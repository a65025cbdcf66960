"""Builds HTML and SVG by nested calls; every plain string is escaped."""

from __future__ import annotations

from html import escape


class Html(str):
    """Text that is HTML already; `tag` and `join` escape any other string."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: object) -> Html:
    """`<name ...>children</name>`.

    In the names of attributes a trailing underscore is dropped (`class_`) and others are hyphens
    (`text_anchor`); an attribute that is None is left out, and floats get two decimals.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Concatenate some pieces."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children))


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
