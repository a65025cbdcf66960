"""`thinwire report`: argv -> one call."""

from __future__ import annotations

from pathlib import Path


def report(run: list[Path], /, *, out: Path | None = None) -> None:
    """Draw the curves and tables of some runs.

    One HTML page that needs nothing else and, with the extra `plot`, a PNG beside it: perplexity
    over time and over tokens, loss, speed, what differs between the runs. A run that still trains
    can be looked at too. The path of the page goes to standard output.

    Parameters
    ----------
    run
        Run folders, made by `thinwire train`; several are compared.
    out
        The page to write. Default: RUN/report.html for a single run, report.html for several.
    """
    from thinwire.report.write import write_report

    print(write_report(run, out))
