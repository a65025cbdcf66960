"""`thinwire generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def generate(
    run: Path,
    /,
    *,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 1,
    step: int | None = None,
    adapter: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int | None = None,
) -> None:
    """Write text that goes on from a prompt.

    It appears as it is written. Unknown words are never written.

    Parameters
    ----------
    run
        A run folder.
    prompt
        What to go on from; empty: the beginning of a line.
    tokens
        How many tokens to write; the end of a line is one.
    temperature
        Below 1, probable words are more probable than the model says; 0: always the most probable
        one.
    top_k
        Choose among the most probable so many; 0: all.
    top_p
        Choose among the fewest, most probable words that hold this part of the probability.
    seed
        The same seed gives the same text.
    step
        Which step of the run. Default: the one with the best validation.
    adapter
        The name of adaptation layers made by `thinwire adapt --method layers` from this run.
    device
        Where to compute; auto: CUDA where there is one, else the CPU.
    threads
        Compute threads. Default: one for each core.
    """
    from thinwire.inference.load import load

    pieces = load(run, step, adapter=adapter, device=device, threads=threads).stream(
        prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
