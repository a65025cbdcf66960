"""Write a trained model in another format."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from thinwire.errors import UserError
from thinwire.inference.trained_model import TrainedModel

Format = Literal["onnx", "hf", "icefall", "words"]


def export(model: TrainedModel, to: Format, out: str | Path, *, int8: bool = False) -> None:
    """Write a trained model in the format of another tool, into a new folder.

    Args:
        model: a trained model, from `thinwire.load`.
        to: onnx, hf, icefall or words.
        out: the folder to create; it appears when it is complete.
        int8: with onnx, also write a second pair of files with 8-bit weights.

    Raises:
        UserError: the format cannot represent the model, a package that writes it is not installed,
            or `out` is not empty.
    """
    if to not in get_args(Format):
        raise UserError(f"{to} is none of the formats {', '.join(get_args(Format))}")
    if int8 and to != "onnx":
        raise UserError(f"--int8 has no meaning with --to {to}")
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already: name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.new")
    folder.mkdir()
    try:
        if to == "onnx":
            _require("onnx", *(["onnxruntime"] if int8 else []))
            # Imported by name, because it needs the package onnx, which is optional.
            import_module("thinwire.export.recurrent_onnx").write_onnx(model, folder, int8=int8)
        elif to == "icefall":
            import_module("thinwire.export.icefall").write_icefall(model, folder)
        elif to == "hf":
            import_module("thinwire.export.hugging_face").write_hugging_face(model, folder)
        else:
            import_module("thinwire.export.words").write_words(model, folder)
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"this format needs the package {package}: pip install {package}")
