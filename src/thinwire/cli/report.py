"""`thinwire report`: argv -> one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def report(
    run: list[Path], /, *, out: Annotated[Path | None, Parameter(metavar="FILE")] = None
) -> None:
    """Draw the curves and tables of one or several runs.

    The report is one HTML page that needs no other file: perplexity over time and over tokens,
    loss, speed, and the settings in which the runs differ. If matplotlib is installed, a PNG is
    written beside the page. A run that is still training can be reported too. The path of the page
    goes to standard output.

    Parameters
    ----------
    run
        Run folders, made by `thinwire train`. Several runs are compared.
    out
        The page to write. Default: RUN/report.html for one run, report.html for several.

    Examples
    --------
    thinwire report run
    thinwire report run1 run2 run3 --out comparison.html
    """
    from thinwire.report.write import write_report

    print(write_report(run, out))
