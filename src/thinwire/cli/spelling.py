"""Converts the ways in which a flag may be written to the one form that the parser reads.

1. Some flags have a short name: `--exchange sync` is `--exchange.kind sync`.
2. A boolean flag may have no value, a value (`--model.tied false`), or a negation in front
   (`--no-model.tied`).
3. A value may begin like a negative number (`--link -5mbit`), and is still the value of the flag.

Every form becomes `--flag=value`. The parser or the verb refuses anything that is wrong after that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from thinwire.errors import UserError

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection

# cyclopts accepts `--exchange` only as the prefix of the flags of a section.
SHORT = {"--exchange": "--exchange.kind"}
NO = "--no-"
TRUTH = ("true", "false")
BELOW_ZERO = re.compile(r"-[\d.]")


def flags(arguments: ArgumentCollection) -> dict[str, bool]:
    """The names of a verb's flags, and whether each is boolean."""
    return {
        name: argument.hint is bool
        for argument in arguments
        if not argument.children
        for name in argument.names
        if name.startswith("--") and name not in argument.negatives
    }


def negative(name: str) -> str:
    """The name of the negated flag."""
    return NO + name.removeprefix("--")


def spelled(tokens: Sequence[str], known: Mapping[str, bool]) -> list[str]:
    """The tokens of a command line in the form that the parser reads.

    Args:
        tokens: the command line.
        known: the verb's flags, as `flags` gives them.

    Raises:
        UserError: a negated flag has a value.
    """
    read: list[str] = []
    left = list(tokens)
    while left:
        token = left.pop(0)
        if token == "--":  # no flags follow
            return [*read, token, *left]
        name, equals, value = token.partition("=")
        name = SHORT.get(name, name)
        following = left[0] if left and not equals else ""
        positive = "--" + name.removeprefix(NO)
        if name.startswith(NO) and name not in known and known.get(positive):
            if equals or following in TRUTH:
                raise UserError(
                    f"{name} takes no value, and {value or following} was given: write "
                    f"{positive} {value or following}"
                )
            read.append(f"{positive}=false")
        elif (known.get(name) and following in TRUTH) or (
            known.get(name) is False and BELOW_ZERO.match(following)
        ):
            read.append(f"{name}={left.pop(0)}")
        else:
            read.append(f"{name}{equals}{value}")
    return read
