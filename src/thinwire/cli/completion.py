"""`thinwire completion`."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that completes commands in a shell.

    The script completes verbs, flags and their choices. It goes to standard output.

    Parameters
    ----------
    shell
        The shell that is to read the script.

    Examples
    --------
    eval "$(thinwire completion bash)"    # in ~/.bashrc
    thinwire completion zsh > ~/.zfunc/_thinwire
    thinwire completion fish > ~/.config/fish/completions/thinwire.fish
    """
    from thinwire.cli.app import build

    print(build().generate_completion(shell=shell))
