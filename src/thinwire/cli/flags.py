"""Flags that several verbs share: each is written here once, with its help.

A verb's docstring documents only the flags that are its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

# Which model, and where it runs: every verb that loads a trained model.
Step = Annotated[
    int | None,
    Parameter(help="The step of the run to load. Default: the step with the best validation."),
]
Adapter = Annotated[
    str | None,
    Parameter(
        help="The name of adaptation layers made by `thinwire adapt --method layers` from this run."
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    Parameter(help="Where to compute. auto: CUDA if there is a GPU, else the CPU."),
]
Threads = Annotated[int | None, Parameter(help="Number of compute threads. Default: one per core.")]

# A neural cache: `eval` and `score`, each of which says itself what --cache does there.
CacheTheta = Annotated[
    str | None,
    Parameter(
        help="How sharply the cache prefers similar hidden states; auto: the best of a few values "
        "on the validation split of the model's data. Default: 1."
    ),
]
CacheLambda = Annotated[
    str | None,
    Parameter(
        help="The part of the probability that the cache gives; auto: as for the other. Default: "
        "0.05."
    ),
]

# Dynamic evaluation: `eval` and `score`, each of which says itself what --dynamic does there.
DynamicRate = Annotated[float | None, Parameter(help="How far such a step goes. Default: 1.")]
DynamicDecay = Annotated[
    float | None,
    Parameter(
        help="The part of the way back to its trained value that each step takes a parameter which "
        "it touches. Default: 0.001."
    ),
]

# An n-gram model: `score` and `rescore`; `eval` says itself what --arpa does there.
Arpa = Annotated[
    Path | None,
    Parameter(
        metavar="FILE",
        help="Interpolate every token's probability with that of an n-gram model in ARPA format, "
        "whose words are the model's tokens.",
    ),
]
ArpaWeight = Annotated[
    float | None,
    Parameter(
        help="The part of the probability that the n-gram model gives, from 0 to 1. Default: what "
        "suits the validation text best."
    ),
]

AsJson = Annotated[bool, Parameter(name="--json", negative="")]
PrintJson = Annotated[
    bool,
    Parameter(name="--json", negative="", help="Print one JSON object and nothing else."),
]
