from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thinwire.report.html import Html, join, tag


def test_strings_are_escaped_and_html_is_not() -> None:
    assert tag("p", "a < b", tag("b", "&")) == "<p>a &lt; b<b>&amp;</b></p>"
    assert join("<", Html("<br>")) == "&lt;<br>"


def test_attributes() -> None:
    drawn = tag("text", class_="x", text_anchor="end", viewBox="0 0", y=1.0, x=2.345, id=None)
    assert drawn == '<text class="x" text-anchor="end" viewBox="0 0" y="1" x="2.35"></text>'


@given(st.text())
def test_no_string_opens_a_tag_or_leaves_an_attribute(text: str) -> None:
    written = tag("p", text, title=text)
    assert written.count("<") == 2
    assert written.count('"') == 2
