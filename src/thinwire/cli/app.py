"""The command `thinwire`: the table of verbs, and how their errors are shown.

Only the verb in use is imported, and the verbs import torch inside their functions, so `--help`
answers at once. The exit status is 0 on success; 2 after an error that the user can correct, with
one sentence on standard error; 130 after Ctrl+C. Any other exception is a bug in thinwire, and its
traceback is shown.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, NamedTuple

from cyclopts import App, CycloptsError, Parameter

from thinwire import __version__
from thinwire.cli.help import VERBS as VERBS_PANEL
from thinwire.cli.help import Help, help_of
from thinwire.cli.refusals import refuse_odd_values, sentence_of, unknown_verb
from thinwire.cli.spelling import flags, spelled
from thinwire.errors import UserError, reason_of, require_posix
from thinwire.interrupts import interrupt_ignored, interrupt_kept

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection
    from cyclopts.config import Dict


class Verb(NamedTuple):
    """The function of a verb, and its line in `thinwire --help`."""

    function: str
    summary: str


VERBS = {
    "demo": Verb("thinwire.cli.demo:demo", "Run the whole story on a small corpus, in minutes."),
    "fetch": Verb("thinwire.cli.fetch:fetch", "Download a corpus from the package index, as text."),
    "prepare": Verb("thinwire.cli.prepare:prepare", "Turn text into a data folder of token ids."),
    "train": Verb("thinwire.cli.train:train", "Train a language model on a data folder."),
    "serve": Verb("thinwire.cli.serve:serve", "Run one server of an asynchronous run."),
    "work": Verb("thinwire.cli.work:work", "Run one worker of an asynchronous run."),
    "eval": Verb("thinwire.cli.eval:evaluate", "Measure the exact perplexity of a trained model."),
    "score": Verb("thinwire.cli.score:score", "Print the log-probability of each line of a text."),
    "generate": Verb("thinwire.cli.generate:generate", "Write text that continues a prompt."),
    "next": Verb("thinwire.cli.next:next_words", "Print the most probable next words."),
    "rescore": Verb("thinwire.cli.rescore:rescore", "Score n-best lists, or rank them anew."),
    "adapt": Verb("thinwire.cli.adapt:adapt", "Adapt a trained model to new text."),
    "export": Verb("thinwire.cli.export:export", "Write a trained model in another format."),
    "plan": Verb("thinwire.cli.plan:plan", "Forecast bytes and speed of each exchange, here."),
    "report": Verb(
        "thinwire.cli.report:report", "Draw the curves and tables of one or several runs."
    ),
    "completion": Verb(
        "thinwire.cli.completion:completion", "Print a script that completes commands in a shell."
    ),
}

SPIN_COUNT = "50000"
NO_MEMORY = (
    "there is not enough memory: a smaller model.width, data.batch or vocabulary, or fewer "
    "--workers take less"
)
# The messages of PyTorch's RuntimeError on the CPU and on GPUs if memory is short.
TORCH_NO_MEMORY = ("can't allocate memory", "out of memory", "size calculation overflowed")
TAKE_SETTINGS = ("train", "serve", "plan")
OWN_FLAGS = ("--help", "-h", "--version")
FIRST_STEPS = (
    "thinwire demo                                 # all of it, on Shakespeare",
    "thinwire prepare book.txt --out data          # your own text",
    "thinwire train data --out run --seconds 600   # a model of your text",
    "thinwire VERB --help                          # the flags of a verb",
)


def build(tokens: Sequence[str] = ()) -> App:
    """The app with all verbs; the verb in `tokens` gets its own docstring as its help."""
    verb = tokens[0] if tokens and tokens[0] in VERBS else None
    app = App(
        name="thinwire",
        help="Train a neural language model on the machines you have.",
        help_formatter=Help(
            lambda: "thinwire VERB [ARGUMENTS] [OPTIONS]", FIRST_STEPS, VERBS_PANEL
        ),
        version=f"thinwire {__version__}",
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        # A folder or a text may be called [notes].
        default_parameter=Parameter(json_list=False, json_dict=False),
        config=(*(_settings(tokens) if verb in TAKE_SETTINGS else ()), refuse_odd_values),
    )
    for order, (name, (function, summary)) in enumerate(VERBS.items()):
        app.command(function, name=name, help=None if name == verb else summary, sort_key=order)
    if verb is not None:
        app[verb].help_formatter = help_of(verb, app[verb])
    return app


def arguments_of(app: App, verb: str) -> ArgumentCollection:
    """The arguments of a verb."""
    return app[verb].assemble_argument_collection(parse_docstring=False)


def run(tokens: Sequence[str]) -> object:
    """Run one command line; its flags may be spelt in any of the ways of `spelling`.

    Raises:
        UserError: the command line or the verb has an error that the user can correct.
    """
    verb = tokens[0] if tokens else ""
    if verb and verb not in (*VERBS, *OWN_FLAGS):
        raise UserError(unknown_verb(verb, (*VERBS, *OWN_FLAGS)))
    app = build(tokens)
    arguments = arguments_of(app, verb) if verb in VERBS else None
    read = list(tokens) if arguments is None else spelled(tokens, flags(arguments))
    try:
        return app(read)
    except CycloptsError as error:
        raise UserError(sentence_of(error, verb, arguments)) from error


def _settings(tokens: Sequence[str]) -> tuple[Dict, ...]:
    from thinwire.cli.settings import settings_from_files

    return settings_from_files(tokens)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` by default) and return its exit status."""
    tokens = sys.argv[1:] if argv is None else argv

    def checked() -> None:
        _wait_politely()
        _print_in_any_encoding()
        require_posix()
        with interrupt_kept():
            run(tokens)

    return guarded(checked)


def guarded(action: Callable[[], object]) -> int:
    """Run an action, print an error that the user can correct, and return the exit status."""
    try:
        action()
        sys.stdout.flush()
        return 0
    except UserError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        _refuse("interrupted")
        return 130
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        _release_stdout()
        return 0
    except SystemExit as end:  # rich, which prints help, raises this for a closed output
        if isinstance(end.__context__, BrokenPipeError):
            return 0
        raise
    except OSError as error:
        _release_stdout()
        return _refuse(reason_of(error))
    except MemoryError:
        return _refuse(NO_MEMORY)
    except RuntimeError as error:  # PyTorch raises this for any error of the system
        if any(words in str(error) for words in TORCH_NO_MEMORY):
            return _refuse(NO_MEMORY)
        if os.strerror(errno.EMFILE) in str(error):
            return _refuse(os.strerror(errno.EMFILE))
        raise


def _print_in_any_encoding() -> None:
    """Print the escape of a character that standard output cannot encode, as on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _wait_politely() -> None:
    """Let waiting threads of OpenMP spin for less than a millisecond, instead of several.

    If other programs use the cores too, spinning threads take the cores from the threads that they
    wait for. The variable must be set before torch is imported, which loads OpenMP.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def _refuse(sentence: str) -> int:
    with interrupt_ignored():
        from rich.text import Text

        from thinwire.console import console, printable

        sentence = printable(sentence.strip())
        # A Text, because rich would interpret square brackets in a file name as markup.
        console.print(Text.assemble(("thinwire: ", "bold red"), sentence), soft_wrap=True)
        _tell_torchrun(sentence)
    return 2


def _tell_torchrun(sentence: str) -> None:
    """Write the sentence to the file that torchrun prints at the end, if torchrun started this.

    Otherwise the sentence would be hidden among torchrun's own traceback and hints.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        report = {"message": sentence, "timestamp": int(time())}
        with suppress(OSError):  # an interrupted torchrun has removed its folder
            Path(file).write_text(json.dumps(report), encoding="utf-8")


def _release_stdout() -> None:
    """Flush what can be written, so that Python's own flush at exit does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
