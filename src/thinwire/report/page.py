"""The report as one HTML page, which loads nothing from elsewhere and runs no scripts."""

from __future__ import annotations

from datetime import datetime
from importlib.resources import files
from typing import Any

from thinwire import __version__
from thinwire.report import svg
from thinwire.report.charts import Chart, thinned
from thinwire.report.figures import count, duration, num_bytes, number
from thinwire.report.html import Html, tag
from thinwire.report.palette import DARK, LIGHT, colour
from thinwire.report.runs import Line, Run

# With this policy a browser runs and loads nothing, even if a string of a run contains HTML.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
MISSING = "\N{EN DASH}"
MOST_ROWS = 60
NOTE = (
    "Perplexity is exact: full softmax, over all tokens scored, unknown words and ends of lines "
    "included. Training time stands still while a whole run pauses to evaluate or save."
)


def page(runs: list[Run], charts: list[Chart], written: datetime) -> Html:
    """The whole page."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    drawn = (tag("figure", tag("h3", chart.title), svg.draw(chart)) for chart in charts)
    body = tag(
        "body",
        _header(title, runs),
        _tiles(runs[0]) if len(runs) == 1 else _comparison(runs),
        tag("section", *drawn, class_="charts"),
        *(_differences(runs) if len(runs) > 1 else ()),
        tag("h2", "Details"),
        *(_validations(run, len(runs) > 1) for run in runs if run.valid),
        _fold("All settings", _settings(runs, _keys(runs))),
        tag("footer", f"Written by thinwire {__version__} on {written:%Y-%m-%d at %H:%M}. {NOTE}"),
    )
    head = tag(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", f"{title} · thinwire report"),
        tag("style", _style()),
    )
    return Html("<!doctype html>\n" + tag("html", head, body, lang="en") + "\n")


def _style() -> Html:
    sheet = files("thinwire.report").joinpath("style.css").read_text(encoding="utf-8")

    def rules(colours: tuple[str, ...]) -> str:
        return "".join(f".run-{i}{{--colour:{code}}}" for i, code in enumerate(colours))

    dark = f"@media screen and (prefers-color-scheme:dark){{{rules(DARK)}}}"
    return Html(f"\n{sheet}{rules(LIGHT)}{dark}")


def _header(title: str, runs: list[Run]) -> Html:
    shared = [part for part in _about(runs[0]) if all(part in _about(run) for run in runs)]
    warning = (
        "These runs were trained on different data, so their perplexities do not compare.",
        "These runs were validated on different numbers of tokens, so their perplexities do not "
        "quite compare.",
    )
    valid = [run for run in runs if run.valid]
    differ = [len({key(run) for run in valid}) > 1 for key in (_data, _tokens_scored)]
    return tag(
        "header",
        tag("h1", title),
        tag("p", " · ".join(shared), class_="soft"),
        tag("p", warning[differ.index(True)], class_="warning") if any(differ) else "",
    )


def _data(run: Run) -> Any:
    return run.settings.get("corpus.fingerprint")


def _tokens_scored(run: Run) -> Any:
    return run.best.get("tokens_scored") if run.best else None


def _about(run: Run) -> list[str]:
    """A description of a run: model, loss, size and machine, as far as they are known."""
    settings, start, machine = run.settings, run.start, run.start.get("machine")
    parts = []
    if {"model.kind", "model.layers", "model.width"} <= settings.keys():
        layers = settings["model.layers"]
        parts.append(
            f"{settings['model.kind']}, {layers} layer{_s(layers)} of {settings['model.width']}"
        )
    if "loss.kind" in settings:
        parts.append(f"{settings['loss.kind']} loss")
    if "parameters" in start:
        parts.append(f"{count(start['parameters'])} parameters")
    if start.get("workers", 1) != 1:
        parts.append(f"{start['workers']} workers")
    if isinstance(machine, dict) and {"threads", "device"} <= machine.keys():
        threads = machine["threads"]
        parts.append(f"{threads} thread{_s(threads)} on {machine['device']}")
    if "run.seed" in settings:
        parts.append(f"seed {settings['run.seed']}")
    return parts


def _s(number: object) -> str:
    return "" if number == 1 else "s"


def _tiles(run: Run) -> Html:
    """The numbers of a single run."""
    totals, best, last = run.totals, run.best, run.last
    tiles = (
        [_tile("Validation perplexity", *_perplexity(best))]
        if best is last
        else [
            _tile("Best validation perplexity", *_perplexity(best)),
            _tile("Last validation perplexity", *_perplexity(last)),
        ]
    )
    tiles += [
        _tile("Trained on", *_trained(totals)),
        _tile("Mean speed", _speed(run), "tokens a second"),
    ]
    if _is_sent(run):
        tiles.append(_tile("Sent by all workers", *_sent(run)))
    if "exchange_seconds" in totals:
        tiles.append(_tile("Waited for the wire", *_waited(run)))
    tiles.append(_tile("Ended", *run.ending, words=True))
    return tag("dl", *tiles, class_="tiles")


def _tile(name: str, figure: str, *notes: str, words: bool = False) -> Html:
    strong = tag("strong", figure, class_="words" if words else None)
    spans = (tag("span", note) for note in notes if note)
    return tag("div", tag("dt", name), tag("dd", strong, *spans), class_="tile")


def _perplexity(line: Line | None) -> tuple[str, ...]:
    """The perplexity, when it was reached, and the number of tokens that it averages over."""
    if line is None:
        return MISSING, "no validation yet"
    return (
        number(line["ppl"]),
        f"after {duration(line['seconds'])}, {count(line['tokens'])} tokens",
        f"over {line['tokens_scored']:,} tokens" if "tokens_scored" in line else "",
        f"{number(line['ppl_known'])} without unknown words" if "ppl_known" in line else "",
    )


def _trained(totals: Line) -> tuple[str, ...]:
    if not totals:
        return MISSING, "nothing recorded yet"
    wall = totals.get("wall_seconds")
    return (
        f"{count(totals['tokens'])} tokens",
        f"in {duration(totals['seconds'])}",
        f"{duration(wall)} with evaluation and saving" if wall is not None else "",
    )


def _speed(run: Run) -> str:
    return f"{run.tokens_per_second:,.0f}" if run.tokens_per_second else MISSING


def _is_sent(run: Run) -> bool:
    return bool(run.totals.get("bytes_sent"))


def _sent(run: Run) -> tuple[str, str]:
    sent, dense = run.totals["bytes_sent"], run.totals.get("bytes_dense")
    less = f"1/{count(dense / sent)} of dense" if dense and sent else ""
    return num_bytes(sent), less


def _waited(run: Run) -> tuple[str, str]:
    waited, seconds = run.totals["exchange_seconds"], run.totals["seconds"]
    share = f"{waited / seconds:.0%} of the training time" if seconds else ""
    return duration(waited), share


def _comparison(runs: list[Run]) -> Html:
    """The numbers of several runs, one row each; the lowest perplexity is highlighted."""
    columns = ["Best perplexity", "Last", "Trained on", "Tokens/s", "Parameters"]
    if any(_is_sent(run) for run in runs):
        columns.append("Sent")
    head = tag(
        "tr",
        tag("th", "Run"),
        *(tag("th", column, class_="number") for column in columns),
        tag("th", "Ended"),
    )
    comparable = len({_data(run) for run in runs}) == 1
    bests = [run.best["ppl"] for run in runs if run.best and comparable]
    lowest = min(bests, default=None)
    rows = (
        tag(
            "tr",
            _named(run, i, scope="row"),
            *_cells(run, lowest)[: len(columns)],
            _cell(*run.ending, class_="words"),
        )
        for i, run in enumerate(runs)
    )
    return _table(tag("thead", head), tag("tbody", *rows))


def _cells(run: Run, lowest: float | None) -> list[Html]:
    best, totals = run.best, run.totals
    tokens, during, *_ = _trained(totals)
    return [
        _cell(
            number(best["ppl"]) if best else MISSING,
            f"after {duration(best['seconds'])}" if best else "",
            class_="number best" if best and best["ppl"] == lowest else "number",
        ),
        _cell(number(run.last["ppl"]) if run.last else MISSING),
        _cell(tokens, during),
        _cell(_speed(run)),
        _cell(count(run.start["parameters"]) if "parameters" in run.start else MISSING),
        _cell(*(_sent(run) if _is_sent(run) else (MISSING,))),
    ]


def _cell(figure: str, note: str = "", class_: str = "number") -> Html:
    return tag("td", figure, tag("small", note) if note else "", class_=class_)


def _named(run: Run, index: int, *, scope: str) -> Html:
    return tag("th", tag("i", class_=f"swatch run-{colour(index)}"), run.name, scope=scope)


def _differences(runs: list[Run]) -> tuple[Html, ...]:
    keys = [key for key in _keys(runs) if len({repr(run.facts.get(key)) for run in runs}) > 1]
    if not keys:
        return (tag("h2", "Settings"), tag("p", "All settings are the same.", class_="soft"))
    return (tag("h2", "What differs"), _settings(runs, keys))


def _keys(runs: list[Run]) -> list[str]:
    """The names of all facts, in the order of the first run that has them."""
    return list(dict.fromkeys(key for run in runs for key in run.facts))


def _settings(runs: list[Run], keys: list[str]) -> Html:
    names = (_named(run, i, scope="col") for i, run in enumerate(runs))
    head = [tag("thead", tag("tr", tag("th", "Setting"), *names))] if len(runs) > 1 else []
    rows = (
        tag(
            "tr",
            tag("th", key, scope="row"),
            *(tag("td", _value(run.facts.get(key))) for run in runs),
        )
        for key in keys
    )
    return _table(*head, tag("tbody", *rows), class_="settings")


def _value(value: Any) -> str:
    if value is None:
        return MISSING
    return str(value).lower() if isinstance(value, bool) else str(value)


def _validations(run: Run, named: bool) -> Html:
    """The numbers of the curve."""
    names = ("Step", "Tokens", "Training time", "Perplexity", "Without unknown words")
    head = tag("thead", tag("tr", *(tag("th", name, class_="number") for name in names)))
    lines = thinned(run.valid, lambda line: float(line["ppl"]), MOST_ROWS)
    rows = [
        [
            f"{line['step']:,}",
            f"{line['tokens']:,}",
            duration(line["seconds"]),
            number(line["ppl"]),
            number(line["ppl_known"]) if "ppl_known" in line else MISSING,
        ]
        for line in lines
    ]
    body = (tag("tr", *(tag("td", cell, class_="number") for cell in row)) for row in rows)
    some = "" if len(rows) == len(run.valid) else f", {len(rows)} of {len(run.valid):,}"
    title = f"Validations of {run.name}{some}" if named else f"Validations{some}"
    return _fold(title, _table(head, tag("tbody", *body)))


def _table(*parts: str, class_: str | None = None) -> Html:
    # On a narrow screen the table scrolls by itself, also by keyboard.
    return tag("div", tag("table", *parts, class_=class_), class_="table", tabindex=0)


def _fold(title: str, content: Html) -> Html:
    return tag("details", tag("summary", title), content)
