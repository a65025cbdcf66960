"""Formats `--help`: how a verb is called, its flags by section, and examples.

By default the parser lists all settings in one panel, with all their names. Here each section of a
settings file has a panel of its own, a flag has its shortest name, and a verb that accepts the
settings of `train` shows only those that affect it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from inspect import Parameter, cleandoc, signature
from typing import TYPE_CHECKING, Any

from cyclopts.help import DefaultFormatter, HelpPanel
from rich.text import Text

from thinwire.cli.refusals import LONG
from thinwire.cli.spelling import negative

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.help import HelpEntry
    from rich.console import Console, ConsoleOptions

# The panels of the parser, in their order; the last one is split into sections here.
VERBS, ARGUMENTS, FLAGS = "Commands", "Arguments", "Parameters"
EXAMPLES = "Examples\n--------\n"
# The sections of a settings file: the title and the introduction of their panel.
SECTIONS = {
    "": ("This command", ""),
    "run": ("Run", "In a settings file: [run]. Each is also --run.NAME."),
    "model": ("Model", ""),
    "loss": ("Loss", ""),
    "data": ("Data", ""),
    "optim": ("Optimiser", ""),
    "exchange": (
        "Exchange between workers",
        "In a settings file: [exchange]; --exchange is its kind. One worker exchanges nothing.",
    ),
    "eval": ("Evaluation", ""),
    "checkpoint": ("Checkpoints", ""),
    "metrics": ("Metrics", ""),
}
# Settings of `train` that another verb accepts, but that do not affect it.
WITHOUT_EFFECT = {
    "plan": (
        *("run.seconds", "eval.*", "checkpoint.*", "metrics.*"),
        *("optim.lr", "optim.row_lr", "optim.weight_decay", "optim.beta?", "optim.momentum"),
        *("optim.rho", "optim.initial_accumulator", "optim.clip", "optim.schedule"),
        *("optim.warmup_steps", "optim.final_lr_fraction", "optim.plateau_*"),
        *("exchange.kind", "exchange.codec", "exchange.select", "exchange.hidden_kind"),
        *("exchange.outer_*", "exchange.timeout_seconds", "exchange.check_replicas"),
        *("exchange.staleness_bound", "exchange.accumulate"),
    ),
    "serve": (
        *("exchange.kind", "exchange.delay", "exchange.local_steps", "exchange.fragments"),
        *("exchange.row_steps", "exchange.overlap_steps"),
        *("exchange.outer_*", "exchange.check_replicas", "exchange.servers"),
    ),
}


def help_of(verb: str, app: App) -> Help:
    """The formatter for the help of a verb; `app` is the app of that verb."""
    function = app.default_command
    assert function is not None
    kinds = {each.kind for each in signature(function).parameters.values()}
    last = FLAGS if Parameter.KEYWORD_ONLY in kinds else ARGUMENTS
    return Help(partial(usage, verb, app), examples(function), last, verb)


def usage(verb: str, app: App) -> str:
    """The usage line of a verb: its arguments, then its required flags."""
    arguments = app.assemble_argument_collection(parse_docstring=False)
    positional = [each for each in arguments if each.index is not None]
    words = ["thinwire", verb]
    for argument in positional:
        name = argument.name.lstrip("-").upper()
        name += "..." if argument.hint not in (str,) and "list" in str(argument.hint) else ""
        words.append(name if argument.required else f"[{name}]")
    named = [each for each in arguments if each.index is None and not each.children]
    for argument in named:
        if argument.required:
            words += [argument.name, argument.parameter.metavar or "VALUE"]
    if any(not each.required for each in named):
        words.append("[OPTIONS]")
    return " ".join(words)


def examples(function: object) -> list[str]:
    """The command lines in the section "Examples" of a verb's docstring."""
    _, _, section = cleandoc(function.__doc__ or "").partition(EXAMPLES)
    return section.partition("\n\n")[0].splitlines()


def section_of(names: Iterable[str]) -> str:
    """The section of a settings file that a flag with these names belongs to; "" for none."""
    dotted = next((name for name in names if "." in name), "")
    section = dotted.removeprefix("--").partition(".")[0]
    return section if section in SECTIONS else ""


@dataclass(frozen=True)
class Help:
    """Formats the help of one verb, or of thinwire itself.

    Attributes:
        usage: returns the usage line.
        examples: command lines to show at the end.
        last: the title of the last panel, after which the examples come.
        verb: the verb; "" for thinwire itself.
    """

    usage: Callable[[], str]
    examples: Sequence[str]
    last: str
    verb: str = ""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a panel of the parser; the panel of flags is split into sections."""
        if panel.title != FLAGS:
            DefaultFormatter()(console, options, panel)
        else:
            for part in self._sections(panel):
                DefaultFormatter()(console, options, part)
        if panel.title == self.last:
            lines = "\n".join(f"  {example}" for example in self.examples)
            console.print(Text(f"\nExamples:\n{lines}"), soft_wrap=True)

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print the usage line; that of the parser does not show lists."""
        console.print(Text(f"Usage: {self.usage()}\n", "bold"))

    def _sections(self, panel: HelpPanel) -> Iterable[HelpPanel]:
        by_section: dict[str, list[HelpEntry]] = {section: [] for section in SECTIONS}
        for entry in panel.entries:
            if not self._is_without_effect(entry):
                by_section[section_of(entry.names)].append(_tidy(entry))
        for section, (title, description) in SECTIONS.items():
            yield panel.copy(
                title=title, description=Text(description), entries=by_section[section]
            )

    def _is_without_effect(self, entry: HelpEntry) -> bool:
        patterns = WITHOUT_EFFECT.get(self.verb, ())
        keys = [name.removeprefix("--") for name in entry.names]
        return any(fnmatch(key, pattern) for key in keys for pattern in patterns)


def _tidy(entry: HelpEntry) -> HelpEntry:
    """Keep one name of a flag and one of its negation; write booleans as in a settings file."""
    first = entry.positive_names[0]
    is_truth = entry.type is bool
    in_section = bool(section_of(entry.names))
    return entry.copy(
        positive_names=(LONG.get(first, first),),
        negative_names=(negative(first),) if is_truth and in_section else (),
        default=entry.default.lower() if is_truth and entry.default else entry.default,
    )
