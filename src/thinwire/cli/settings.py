"""Where `thinwire train` finds settings besides its flags: a TOML file, or the run it resumes."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from cyclopts.config import Dict

from thinwire.config import read_toml, typed_sections
from thinwire.exchange.config import KINDS_OF
from thinwire.launch.start import under_torchrun


def settings_from_files(tokens: Sequence[str]) -> tuple[Dict, ...]:
    """The settings that flags are laid over: those of --config or, resuming, of the run itself."""
    parser = ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    # "?": that a value is missing is for the real parser to say.
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
    sections.pop("corpus", None)  # a run's own file also says which data folder it was used on
    typed = typed_sections(sections, str(file))
    if seen.exchange and resumes:  # what only the exchange of before had went with it
        of_before = [name for name, kinds in KINDS_OF.items() if seen.exchange not in kinds]
        for name in of_before:
            typed.get("exchange", {}).pop(name, None)
    if under_torchrun():  # how many workers there are is its business, whatever the file says
        typed.get("run", {}).pop("workers", None)
    return (Dict(typed, use_commands_as_keys=False, source=str(file)),)
