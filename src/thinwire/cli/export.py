"""`thinwire export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from thinwire.cli.flags import Adapter, Step


def export(
    run: Path,
    /,
    *,
    to: Literal["onnx", "hf", "icefall", "words"],
    out: Annotated[Path, Parameter(metavar="DIR")],
    int8: Annotated[bool, Parameter(negative="")] = False,
    step: Step = None,
    adapter: Adapter = None,
) -> None:
    """Write a trained model in another format.

    A model that a format cannot hold is refused with the reason.

    Parameters
    ----------
    run
        A run folder.
    to
        onnx: the two files of an RNN language model for sherpa-onnx and icefall (needs the extra
        export). hf: a model folder for Hugging Face transformers. icefall: a checkpoint of its RNN
        language model. words: the vocabulary, words.txt and counts.txt.
    out
        The folder to create.
    int8
        onnx: write a second pair of files with weights of 8 bits.

    Examples
    --------
    thinwire export run --to onnx --out exported
    thinwire export run --to hf --out model
    """
    from thinwire.console import print_line
    from thinwire.export.export import export as write
    from thinwire.inference.load import load

    write(load(run, step, adapter=adapter, device="cpu"), to, out, int8=int8)
    print_line(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
