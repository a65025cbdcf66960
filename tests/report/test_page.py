from __future__ import annotations

import re
from datetime import datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from thinwire.report.charts import charts
from thinwire.report.page import page
from thinwire.report.runs import read_runs
from thinwire.report.svg import HEIGHT, LINE_HEIGHT

from .conftest import START, history

NOW = datetime(2026, 11, 22, 15, 4)
VOID = {"meta"}


def written(*paths: Path) -> str:
    runs = read_runs(paths)
    return page(runs, charts(runs), NOW)


class Checker(HTMLParser):
    """Collects the text, and fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & {*self.open}:
            self.text += f" {data}"


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert "script" not in checker.tags
    assert "url(" not in html
    assert "@import" not in html
    return checker


def test_one_run(make_run) -> None:
    shown = checked(written(make_run()))
    assert shown.tags.count("svg") == 4
    for words in (
        "lstm, 1 layer of 64 · 34.9 M parameters · 2 threads on cpu",
        "25.00",
        "after 10.0 s, 22.4 k tokens",
        "over 5,056 tokens",
        "22.50 without unknown words",
        "12.0 s with evaluation and saving",
        "token budget spent",
        "perplexity (log scale)",
        "model.width",
        "2026-11-22 at 15:04",
    ):
        assert words in shown.text
    assert "Sent" not in shown.text


def test_several_runs(make_run) -> None:
    paths = [make_run("narrow", width=32), make_run("wide", history(ppl=360), width=128)]
    html = written(*paths)
    shown = checked(html)
    assert "2 runs compared" in shown.text
    differing = re.search("<h2>What differs</h2>(.*?)<h2>", html)
    assert differing
    assert re.findall('<th scope="row">(.*?)</th>', differing[1]) == ["model.width"]
    assert '<td class="number best">22.50' in html
    assert html.count('<td class="number best">') == 1


def test_runs_on_different_data_are_not_compared(make_run) -> None:
    html = written(make_run("a"), make_run("b", fingerprint="0000"))
    assert "do not compare" in checked(html).text
    assert '<td class="number best">' not in html


def test_runs_with_the_same_settings(make_run) -> None:
    assert "All settings are the same." in checked(written(make_run("a"), make_run("b"))).text


def test_what_several_workers_sent(make_run) -> None:
    lines = history(bytes_sent=1_000_000, bytes_dense=40_000_000, exchange_seconds=0.5)
    alone = checked(written(make_run("a", lines))).text
    assert "4 MB" in alone
    assert "1/40 of dense" in alone
    assert "20% of the training time" in alone
    beside = checked(written(make_run("b", lines), make_run("c"))).text
    assert "Sent" in beside
    assert "Validation perplexity over bytes sent" in beside


@pytest.mark.parametrize("lines", [[], [START], history()[:2], history()[:3], history(1)], ids=len)
def test_a_run_at_any_stage(make_run, lines) -> None:
    path = make_run(lines=lines, raw='{"event": "tra')
    checked(written(path))
    checked(written(path, make_run("other")))


def test_everything_is_escaped(make_run) -> None:
    bad = "<script>alert(1)</script><b title='&\"'>"
    lines = [START | {"versions": {bad: bad}}, *history()[1:-1]]
    lines.append({**lines[-1], "event": "end", "reason": bad})
    path = make_run("<b>&'\"<b>", lines)
    config = path / "config.toml"
    config.write_text(config.read_text() + f"['{bad.replace(chr(39), '')}']\nx = '''{bad}'''\n")
    shown = checked(written(path, make_run("other")))
    assert bad in shown.text
    assert "b" not in shown.tags


def test_many_runs_have_no_labels_that_overlap(make_run) -> None:
    paths = [make_run(f"run{i}", history(ppl=400 + i)) for i in range(20)]
    assert 'class="name' not in written(*paths)
    html = written(*paths[:12])
    drawing = html[html.index("<svg") : html.index("</svg>")]
    heights = [float(y) for y in re.findall(r'class="leader".*?<text x="\S+" y="(\S+?)"', drawing)]
    heights.sort()
    assert len(heights) == 12
    assert all(b - a >= LINE_HEIGHT - 0.02 for a, b in pairwise(heights))
    assert heights[-1] < HEIGHT
