"""Adaptation layers in a small file of their own: RUN/adapters/NAME.safetensors.

Several sets of layers share one base run. A file has the trained parameters of one set. Its header
says which step of the base they were trained on, and the checksum of that step's parameters.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

from safetensors import SafetensorError, safe_open
from torch import Tensor

from thinwire.errors import UserError
from thinwire.files import read_json
from thinwire.models.config import AdapterPlaces
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.folder import RunFolder
from thinwire.runs.step_folder import CHECKSUMS, Checkpoint
from thinwire.runs.tensor_file import save_tensors

FOLDER = "adapters"
MODEL_FILE = "model.safetensors"
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class AdapterFile:
    """Trained layers, and the step of the base run that they belong to.

    Attributes:
        parameters: the trained parameters, by name.
        adapters: where the layers are, as in the setting `model.adapters`.
        step: the step of the base run.
        checksum: the checksum of the parameters of that step.
    """

    parameters: Mapping[str, Tensor]
    adapters: AdapterPlaces
    step: int
    checksum: str

    @staticmethod
    def path(run: Path, name: str) -> Path:
        """The file with the layers called `name` in the run folder `run`."""
        return run / FOLDER / f"{name}{_SUFFIX}"

    @classmethod
    def open(cls, run: Path, name: str) -> AdapterFile:
        """Read the layers with this name.

        Raises:
            UserError: there are no layers with this name, or their file is damaged.
        """
        path = cls.path(run, name)
        if not path.is_file():
            raise UserError(f"{run} has no adapter {name!r}{_hint(run, name)}")
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                parameters = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            adapters = next(p for p in get_args(AdapterPlaces) if p == header["places"])
            return cls(parameters, adapters, int(header["step"]), header["checksum"])
        except (OSError, SafetensorError, KeyError, ValueError, StopIteration) as error:
            raise UserError(f"the adapter {path} is damaged ({error})") from None

    def save(self, run: Path, name: str) -> Path:
        """Write the file into the run folder; if that fails, no file is left."""
        path = self.path(run, name)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        header = {"places": self.adapters, "step": str(self.step), "checksum": self.checksum}
        try:
            save_tensors(self.parameters, temporary, header)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return path

    def on(self, base: RunFolder) -> tuple[RunFolder, Checkpoint]:
        """The settings of the base with these layers added, and the step that they belong to.

        Raises:
            UserError: that step is gone, or its parameters have changed.
        """
        saved = Checkpoints(base.path).load(self.step)
        found = parameters_checksum(saved)
        if found != self.checksum:
            raise UserError(
                f"the adapter was trained on a step {self.step} whose parameters had "
                f"{self.checksum}, and those in {saved.path} have {found}"
            )
        frozen = str((saved.path / MODEL_FILE).absolute())
        model = replace(base.config.model, adapters=self.adapters, frozen=frozen)
        return replace(base, config=replace(base.config, model=model)), saved


def parameters_checksum(saved: Checkpoint) -> str:
    """Size and CRC-32 of the file with a step's parameters, from its `checksums.json`."""
    content = read_json(saved.path / CHECKSUMS)
    return str(content["files"][MODEL_FILE])


def _hint(run: Path, name: str) -> str:
    names = sorted(file.stem for file in (run / FOLDER).glob(f"*{_SUFFIX}"))
    if not names:
        return ": there are none beside it"
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f", only {', '.join(names)}"
