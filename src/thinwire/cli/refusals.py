"""Turns errors of the command-line parser into one sentence each."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from cyclopts import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from thinwire.cli.spelling import SHORT, flags, negative
from thinwire.config import LARGEST_WHOLE, in_words
from thinwire.errors import UserError

if TYPE_CHECKING:
    from cyclopts import App, ArgumentCollection, CycloptsError
    from cyclopts.argument import Argument

LONG = {long: short for short, long in SHORT.items()}
# Flags for a text, which users often give without a flag.
TAKE_TEXT = ("--prompt", "--text")


def refuse_odd_values(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse values that cyclopts would accept: it turns an empty path into ".", and 16.5 into 16.

    Raises:
        UserError: a value is empty although the default is not, is a fraction instead of a whole
            number, or is larger than `LARGEST_WHOLE`.
    """
    for argument in arguments:
        if argument.hint is bool:
            continue
        for token in argument.tokens:
            if not token.value.strip() and argument.field_info.default != "":
                raise UserError(f"{_name(argument, token.keyword)} is empty, and needs a value")
            if argument.hint not in (int, int | None):
                continue
            name = _name(argument, token.keyword)
            if "." in token.value:
                raise UserError(f"{name} is {token.value}, and must be a whole number")
            digits = token.value.strip().lstrip("+-0")
            too_long = len(digits) > len(str(LARGEST_WHOLE))
            if too_long or (digits.isdecimal() and int(digits) > LARGEST_WHOLE):
                raise UserError(f"{name} is {token.value}, and must be {LARGEST_WHOLE:,} at most")


def sentence_of(error: CycloptsError, verb: str, arguments: ArgumentCollection | None) -> str:
    """One sentence about an error of the parser.

    Args:
        error: the exception of the parser.
        verb: the verb of the command line.
        arguments: the arguments of the verb; None: the verb is not known.
    """
    argument = error.argument
    match error:
        case UnknownOptionError():
            flag = error.token.keyword or error.token.value
            return unknown_flag(flag.partition("=")[0], verb, error.argument_collection)
        case CoercionError() if argument is not None and argument.children:
            return f"{argument.name} is a section: its settings are flags {argument.name}.NAME"
        case CoercionError() if argument is not None and error.token is not None:
            name = _name(argument, error.token.keyword)
            return f"{name} is {error.token.value!r}, and must be {in_words(argument.hint)}"
        case MissingArgumentError() if argument is not None and error.keyword:
            return f"{_name(argument, error.keyword)} needs a value"
        case MissingArgumentError() if argument is not None:
            return f"thinwire {verb} needs {_name(argument)}: thinwire {verb} --help shows how"
        case RepeatArgumentError():
            return f"{_flag(error.token.keyword or '')} is given twice"
        case UnusedCliTokensError() if arguments is not None and error.unused_tokens:
            return _left_over(error.unused_tokens, error.root_input_tokens or [], verb, arguments)
    return str(error).strip().rstrip(".")


def unknown_verb(verb: str, known: Iterable[str]) -> str:
    """The sentence about an unknown verb, or a flag without a verb; suggests a similar one."""
    near = get_close_matches(verb, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else "thinwire --help lists the verbs"
    if verb.startswith("-"):
        return f"unknown flag: {verb}; {hint if near else 'flags come after the verb'}"
    return f"unknown verb: {verb}; {hint}"


def unknown_flag(flag: str, verb: str, arguments: ArgumentCollection) -> str:
    """The sentence about an unknown flag; suggests a similar one."""
    known = flags(arguments)
    names = [LONG.get(name, name) for name in known]
    names += [negative(name) for name, is_truth in known.items() if is_truth and "." in name]
    key = flag.removeprefix("--")
    same_key = [name for name in names if name.endswith(f".{key}")]
    flipped = flag.replace(".no-", ".").replace("--", "--no-", 1) if ".no-" in flag else flag
    near = same_key or get_close_matches(flipped, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"thinwire {verb} --help lists the flags"
    return f"unknown flag: {flag}; {hint}"


def _left_over(
    tokens: list[str], typed: list[str], verb: str, arguments: ArgumentCollection
) -> str:
    before = typed[typed.index(tokens[0]) - 1] if tokens[0] in typed else ""
    if flags(arguments).get(before):
        return f"{before} is {tokens[0]!r}, and must be true or false"
    takes = ", ".join(_name(each) for each in arguments if each.index is not None) or "only flags"
    given = repr(" ".join(tokens))
    text = [name for name in flags(arguments) if name in TAKE_TEXT]
    hint = f": a text goes after {text[0]}, in quotes" if text else ""
    return f"thinwire {verb} takes {takes}, and {given} is left over{hint}"


def _name(argument: Argument, keyword: str | None = None) -> str:
    """The name of an argument as users write it: `--out`, or DATA for a positional one."""
    if keyword and keyword.startswith("-"):
        return _flag(keyword)
    return argument.name if argument.index is None else argument.name.lstrip("-").upper()


def _flag(name: str) -> str:
    return LONG.get(name, name)
