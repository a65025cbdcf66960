"""Every flag of every verb with a good value, a bad one, an empty one and none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from cyclopts import ArgumentCollection

from thinwire.cli.app import VERBS, arguments_of, build, main
from thinwire.cli.spelling import flags, negative, spelled
from thinwire.config import RunConfig
from thinwire.errors import UserError

Capture = pytest.CaptureFixture[str]
# What has to stand on a command line for its flags to be read.
NEEDED: dict[str, list[str]] = {
    "demo": [],
    "fetch": ["kjv"],
    "prepare": ["book.txt", "--out", "x"],
    "train": ["data", "--out", "x"],
    "serve": ["data", "--out", "x", "--listen", "127.0.0.1:0"],
    "work": ["data", "--servers", "127.0.0.1:1"],
    "eval": ["run"],
    "score": ["run"],
    "generate": ["run"],
    "next": ["run"],
    "rescore": ["run", "nbest.txt", "--out", "x"],
    "plan": ["data"],
    "report": ["run"],
    "completion": ["bash"],
    "adapt": ["run", "book.txt", "--out", "x"],
    "export": ["run", "--to", "words", "--out", "x"],
}
# Good values, of which the first that may stand alone is taken.
GOOD = {int: ["7", "2", "0"], float: ["0.25", "1.5", "0.0"], str: ["a"], Path: ["b"]}


@cache
def taken(verb: str) -> ArgumentCollection:
    """What a verb takes, which no command line changes; found once, since it takes its time."""
    return arguments_of(build([verb]), verb)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with `b`, which is what `--config` takes."""
    for verb in VERBS:
        taken(verb)
    monkeypatch.setattr("thinwire.cli.app.arguments_of", lambda app, verb: taken(verb))
    monkeypatch.chdir(tmp_path)
    Path("b").write_text("[model]\nwidth = 9\n")


def kind_of(hint: Any) -> Any:
    """The type that a value must be of; the choices where a name that is none is taken too."""
    if get_origin(hint) in (Union, UnionType):
        hint, *_ = (each for each in get_args(hint) if each is not type(None))
    return hint


def is_walked(verb: str, names: tuple[str, ...]) -> bool:
    """Settings are the same for all verbs that take them: they are walked once."""
    return verb == "train" or not any("." in name for name in names)


def with_values(verb: str) -> Iterator[tuple[str, Any]]:
    """The names and types of a verb's flags that take a value, truth values apart."""
    for argument in taken(verb):
        if not argument.children and argument.hint is not bool and is_walked(verb, argument.names):
            for name in argument.names:
                if name.startswith("--"):
                    yield name, kind_of(argument.hint)


def line(verb: str, *more: str) -> list[str]:
    """A command line with what the verb needs, but for what `more` gives."""
    needed = NEEDED[verb]
    for name in (flag.partition("=")[0] for flag in more):
        if name in needed:
            at = needed.index(name)
            needed = [*needed[:at], *needed[at + 2 :]]
    return [verb, *needed, *more]


def parsed(tokens: list[str]) -> dict[str, Any]:
    """What the verb's function would be called with."""
    app = build(tokens)
    read = spelled(tokens, flags(taken(tokens[0])))
    return dict(app.parse_args(read, exit_on_error=False)[1].arguments)


def refused(capsys: Capture, tokens: list[str]) -> str:
    """The one sentence with which a command line is refused."""
    assert main(tokens) == 2, tokens
    captured = capsys.readouterr()
    assert captured.out == "", tokens
    assert captured.err.startswith("thinwire: ") and captured.err.count("\n") == 1, captured.err
    assert not captured.err.rstrip().endswith("."), captured.err
    return captured.err.removeprefix("thinwire: ").rstrip()


def test_every_verb_is_walked() -> None:
    assert NEEDED.keys() == VERBS.keys()


def setting(config: Any, name: str) -> Any:
    """The setting that `--section.key` sets."""
    section, _, key = name.removeprefix("--").partition(".")
    return getattr(getattr(config, section), key)


@pytest.mark.parametrize("verb", VERBS)
def test_a_good_value(verb: str) -> None:
    for name, kind in with_values(verb):
        good = GOOD.get(kind) or [str(choice) for choice in get_args(kind)][::-1]
        for value in good:
            try:
                found = parsed(line(verb, name, value))
            except UserError:
                if name == "--model.frozen":  # needs model.adapters, and adapt sets both
                    break
                continue  # it does not stand alone: fewer local steps than fragments
            if "." in name:
                assert str(setting(found["settings"], name)) in (value, f"{value}.0")
            else:
                assert found != parsed(line(verb)) or value in str(found)
            break
        else:
            raise AssertionError(f"{verb} {name} takes none of {good}")


@pytest.mark.parametrize("verb", VERBS)
def test_a_bad_value(verb: str, capsys: Capture) -> None:
    for name, kind in with_values(verb):
        if kind in (int, float):
            said = refused(capsys, line(verb, name, "-5mbit"))
            assert "is '-5mbit', and must be a" in said
        if get_origin(kind) is Literal:
            said = refused(capsys, line(verb, name, "nope"))
            assert "nope" in said and f"one of {', '.join(get_args(kind))}" in said


@pytest.mark.parametrize("value", ["wide", "inf", "nan", "1.5", "1e3", "0x", "1,5"])
def test_what_is_no_whole_number(value: str, capsys: Capture) -> None:
    said = refused(capsys, line("generate", "--tokens", value))
    assert said.startswith("--tokens is ") and said.endswith("must be a whole number")


@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_value(verb: str, capsys: Capture) -> None:
    for name, _ in with_values(verb):
        if name in ("--prompt", "--servers", "--model.frozen"):
            continue  # empty is the default
        said = refused(capsys, line(verb, name, ""))
        shown = "--exchange" if name == "--exchange.kind" else name
        assert said == f"{shown} is empty, and needs a value"


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_value(verb: str, capsys: Capture) -> None:
    for name, _ in with_values(verb):
        shown = "--exchange" if name == "--exchange.kind" else name
        assert refused(capsys, line(verb, name)) == f"{shown} needs a value"


@pytest.mark.parametrize("verb", VERBS)
def test_truth_values(verb: str, capsys: Capture) -> None:
    known = flags(taken(verb))
    for name in (name for name, is_truth in known.items() if is_truth):
        if not is_walked(verb, (name,)):
            continue
        plain = parsed(line(verb))
        yes = parsed(line(verb, name))
        default = RunConfig()
        off = default
        if "." in name:
            section, _, key = name.removeprefix("--").partition(".")
            switched = replace(getattr(default, section), **{key: False})
            off = replace(default, **{section: switched})
            assert setting(yes["settings"], name) is True
        else:
            assert yes != plain
        for more in ([name, "true"], [f"{name}=true"]):
            assert parsed(line(verb, *more)) == yes
        for more in ([name, "false"], [f"{name}=false"]):
            assert parsed(line(verb, *more)).get("settings", off) == off
        assert (
            refused(capsys, line(verb, f"{name}=maybe"))
            == f"{name} is 'maybe', and must be true or false"
        )
        if "." in name:
            no = negative(name)
            assert parsed(line(verb, no)).get("settings", default) == off
            said = refused(capsys, line(verb, no, "true"))
            assert said == f"{no} takes no value, and true was given: write {name} true"
            assert refused(capsys, line(verb, name, "maybe")).endswith("must be true or false")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["plan", "DATA", "--link", "-5mbit"], "--link is '-5mbit', and must be a rate"),
        (["plan", "DATA", "--link", "5parsec"], "--link is '5parsec', and must be a rate"),
        (["plan", "DATA", "--link", "nanmbit"], "--link is 'nanmbit', and must be a rate"),
        (["serve", "DATA", "--out", "x", "--listen", "1:1", "--shard", "2/2"], "--shard is 2/2"),
        (["serve", "DATA", "--out", "x", "--listen", "1:1", "--shard", "-1/2"], "--shard is -1/2"),
        (["serve", "DATA", "--out", "x", "--listen", "nowhere"], "nowhere"),
        (["work", "DATA", "--servers", "nowhere"], "nowhere"),
        (["prepare", "BOOK", "--out", "x", "--tokenizer", "letters"], "letters"),
        (["prepare", "BOOK", "--out", "x", "--valid", "1.5"], "1.5"),
        (["prepare", "BOOK", "--out", "x", "--test", "-0.5"], "-0.5"),
        (["prepare", "BOOK", "--out", "x", "--vocab", "none.txt"], "none.txt"),
        (["eval", "RUN", "--text", "none.txt"], "none.txt"),
        (["eval", "RUN", "--data", "none"], "none"),
        (["fetch", "bible"], "bible"),
        (["report", "none"], "none is not a run folder"),
    ],
)
def test_bad_texts_and_paths(
    arguments: list[str],
    sentence: str,
    toy_data: Path,
    toy_run: Path,
    book: Path,
    capsys: Capture,
) -> None:
    stand_for = {"DATA": str(toy_data), "RUN": str(toy_run), "BOOK": str(book)}
    assert main([stand_for.get(word, word) for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert sentence in captured.err.splitlines()[-1]
