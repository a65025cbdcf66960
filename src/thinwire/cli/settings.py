"""Reads settings for `thinwire train` from a TOML file, or from the run that is resumed."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from cyclopts.config import Dict

from thinwire.config import read_toml, typed_sections
from thinwire.exchange.config import KINDS_OF
from thinwire.launch.start import under_torchrun


def settings_from_files(tokens: Sequence[str]) -> tuple[Dict, ...]:
    """The settings that flags override: those of --config or, with --resume, of the run."""
    parser = ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    # nargs="?": the real parser reports a missing value.
    parser.add_argument("--config", nargs="?")
    parser.add_argument("--out", nargs="?")
    parser.add_argument("--resume", nargs="?", const="true", default="false")
    parser.add_argument("--exchange", "--exchange.kind", nargs="?")
    seen, _ = parser.parse_known_args(list(tokens))
    file = Path(seen.config) if seen.config else None
    resumes = file is None and seen.resume != "false"
    if resumes and seen.out:
        own = Path(seen.out, "config.toml")
        file = own if own.exists() else None
    if file is None:
        return ()
    sections = read_toml(file)
    sections.pop("corpus", None)  # the file of a run also has the data folder
    typed = typed_sections(sections, str(file))
    if seen.exchange and resumes:  # drop settings that only the previous exchange had
        dropped = [name for name, kinds in KINDS_OF.items() if seen.exchange not in kinds]
        for name in dropped:
            typed.get("exchange", {}).pop(name, None)
    if under_torchrun():  # torchrun decides the number of workers, not the file
        typed.get("run", {}).pop("workers", None)
    return (Dict(typed, use_commands_as_keys=False, source=str(file)),)
