"""Writes a report of runs: a page, and a picture if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from thinwire.console import print_line
from thinwire.errors import UserError
from thinwire.files import write_whole
from thinwire.report import png
from thinwire.report.charts import charts
from thinwire.report.page import page
from thinwire.report.runs import read_runs


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of some runs and return the path of its page.

    Args:
        folders: run folders.
        out: the file to write, or a folder for `report.html`. None: the folder of the run, or, for
            several runs, the working folder. The picture has the same name, with `.png`.

    Raises:
        UserError: a folder is not a run folder, or no folder is given.
    """
    if not folders:
        raise UserError("a report needs at least 1 run folder, and 0 were named")
    runs = read_runs(folders)
    if out is None:
        out = runs[0].path if len(runs) == 1 else Path()
    if out.is_dir():
        out = out / "report.html"
    curves = charts(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = page(runs, curves, datetime.now())
    # A file name may contain characters that UTF-8 cannot encode.
    write_whole(out, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    picture = out.with_suffix(".png")
    try:
        png.draw(curves, picture)
        print_line(f"The curves as a picture: {picture}")
    except ImportError:
        print_line("No picture was written: it needs matplotlib (pip install matplotlib)")
    return out
