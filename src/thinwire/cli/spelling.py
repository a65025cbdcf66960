"""What people may write for a flag besides the one form that the parser reads.

1. Some flags have a short name: `--exchange sync` is `--exchange.kind sync`.
2. A flag that is true or false may stand alone, take a value (`--model.tied false`), or be negated
   in front (`--no-model.tied`).
3. A value may begin like a number below zero (`--link -5mbit`): it is still that flag's value.

Every form becomes `--flag=value`. What remains wrong is refused by the parser, or by the verb.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from thinwire.errors import UserError

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection

# cyclopts reads `--exchange` as the prefix of a section's flags only.
SHORT = {"--exchange": "--exchange.kind"}
NO = "--no-"
TRUTH = ("true", "false")
BELOW_ZERO = re.compile(r"-[\d.]")


def flags(arguments: ArgumentCollection) -> dict[str, bool]:
    """The names of a verb's flags; true: the flag is a truth value."""
    return {
        name: argument.hint is bool
        for argument in arguments
        if not argument.children
        for name in argument.names
        if name.startswith("--") and name not in argument.negatives
    }


def negative(name: str) -> str:
    """The flag that says no."""
    return NO + name.removeprefix("--")


def spelled(tokens: Sequence[str], known: Mapping[str, bool]) -> list[str]:
    """The tokens of a command line in the form that the parser reads.

    Args:
        tokens: what was typed.
        known: the verb's flags, as `flags` gives them.

    Raises:
        UserError: a value for a flag that says no.
    """
    read: list[str] = []
    left = list(tokens)
    while left:
        token = left.pop(0)
        if token == "--":  # what follows is no flag
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
