"""`thinwire generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from thinwire.cli.flags import Adapter, Device, Step, Threads


def generate(
    run: Path,
    /,
    *,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True, metavar="TEXT")] = "",
    tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 1,
    step: Step = None,
    adapter: Adapter = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Write text that continues a prompt.

    The text is printed word by word. Unknown words are never written.

    Parameters
    ----------
    run
        A run folder.
    prompt
        The text to continue. Default: empty, which is the beginning of a line.
    tokens
        Number of tokens to write. The end of a line counts as one.
    temperature
        Below 1, probable words become more probable than the model says. 0: always write the most
        probable word.
    top_k
        Draw only from the K most probable words. 0: from all.
    top_p
        Draw only from the smallest set of words whose probabilities add up to P.
    seed
        Seed of the random draws: the same seed gives the same text.

    Examples
    --------
    thinwire generate run --prompt "My lord," --tokens 60
    thinwire generate run --temperature 0.5 --seed 3
    """
    from thinwire.inference.load import load

    pieces = load(run, step, adapter=adapter, device=device, threads=threads).stream(
        prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
