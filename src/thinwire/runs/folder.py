"""A run folder: settings, tokenizer, metrics and steps. It is all that is needed to use the model.

config.toml        all settings, and the data folder that they were used on metrics.jsonl      the
measurements tokenizer.json     the tokenizer of the data folder counts.safetensors how often each
word occurs in the training text; samples are drawn by these counts step-N/            checkpoints
base.safetensors   only if adaptation layers alone are trained: the other, frozen parameters
adapters/NAME      layers of adaptations that have this run as their base (adapter_file.py)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from thinwire.config import Precision, RunConfig, RunSettings, read_toml, toml_section
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError, may_not_read
from thinwire.files import write_whole
from thinwire.language_model import LanguageModel
from thinwire.loss.config import LossConfig
from thinwire.runs.step_folder import Checkpoint
from thinwire.runs.tensor_file import save_tensors

CONFIG_FILE = "config.toml"
TOKENIZER_FILE = "tokenizer.json"
COUNTS_FILE = "counts.safetensors"
FROZEN_FILE = "base.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """A run: its folder, its settings, and the data folder that it is trained on."""

    path: Path
    config: RunConfig
    data: Path
    fingerprint: str
    unk_id: int | None
    eos_id: int
    budget_before: RunSettings | None = None
    """If the run is resumed: its settings before that, with the old budget."""

    def __post_init__(self) -> None:
        try:
            str(self.data).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"the name {os.fsencode(self.data)!r} is not UTF-8, and {CONFIG_FILE}, which is, "
                "has to name the data folder: rename it"
            ) from None

    @classmethod
    def planned(cls, path: Path, config: RunConfig, corpus: Corpus) -> RunFolder:
        """A run that is not on disk yet.

        Raises:
            UserError: there is one already.
        """
        require_utf8(path)
        if (path / CONFIG_FILE).exists():
            raise UserError(
                f"{path} already holds a run: go on with --resume, or name another --out"
            )
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, and a run needs a folder")
        return cls(
            path,
            config,
            corpus.path.resolve(),
            corpus.meta.fingerprint,
            corpus.meta.unk_id,
            corpus.meta.eos_id,
        )

    @classmethod
    def create(cls, path: Path, config: RunConfig, corpus: Corpus) -> RunFolder:
        """Plan a run and write it."""
        run = cls.planned(path, config, corpus)
        run.write(corpus)
        return run

    def write(self, corpus: Corpus) -> None:
        """Create the folder and its parents. The settings come last: they make the folder a run."""
        self.path.mkdir(parents=True, exist_ok=True)
        counts_file = self.path / COUNTS_FILE
        try:
            shutil.copyfile(corpus.tokenizer_file, self.tokenizer_file)
            save_tensors({"counts": torch.from_numpy(corpus.counts_V)}, counts_file)
            self.write_config()
        except BaseException:
            for file in (self.tokenizer_file, counts_file):
                file.unlink(missing_ok=True)
            raise

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read an existing run's settings.

        Raises:
            UserError: there is no run, or its settings cannot be read.
        """
        if not (path / CONFIG_FILE).exists():
            raise UserError(f"{path} is not a run folder: it has no {CONFIG_FILE}")
        sections = read_toml(path / CONFIG_FILE)
        corpus = sections.pop("corpus", {})
        if not {"path", "fingerprint", "eos_id"} <= corpus.keys():
            raise UserError(f"{path / CONFIG_FILE} does not say which data folder it was used on")
        config = RunConfig.from_dict(sections, str(path / CONFIG_FILE))
        if config.model.frozen and (path / FROZEN_FILE).exists():  # wherever the run was moved
            frozen = str((path / FROZEN_FILE).absolute())
            config = replace(config, model=replace(config.model, frozen=frozen))
        return cls(
            path,
            config,
            Path(corpus["path"]),
            corpus["fingerprint"],
            corpus.get("unk_id"),
            corpus["eos_id"],
        )

    def write_config(self) -> None:
        """Write the settings; if that fails, the old file stays."""
        corpus = {
            "path": self.data.as_posix(),
            "fingerprint": self.fingerprint,
            "unk_id": self.unk_id,
            "eos_id": self.eos_id,
        }
        text = f"{self.config.to_toml()}\n{toml_section('corpus', corpus)}"
        write_whole(self.path / CONFIG_FILE, text)

    def counts_V(self) -> Tensor:
        """How often each word occurs in the training text, int64.

        Raises:
            UserError: the file is missing or damaged, or may not be read.
        """
        file = self.path / COUNTS_FILE
        try:
            return load_file(file)["counts"]
        except PermissionError:
            raise may_not_read(file) from None
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{file} is missing or damaged ({error})") from None

    def load_model(
        self, saved: Checkpoint, parameters: Mapping[str, Tensor] | None = None
    ) -> LanguageModel:
        """The model with the parameters of a step of this run.

        Args:
            saved: the step.
            parameters: the trained parameters, by name; None: those of the step.

        Raises:
            UserError: the parameters do not fit the model of this run.
        """
        config = self.config
        # A sampled loss is used in training only, and is not part of the model.
        loss = config.loss if config.loss.kind == "adaptive" else LossConfig(kind="full")
        counts_V = self.counts_V()
        model = LanguageModel(config.model, loss, counts_V, config.run.seed, initialise=False)
        load_parameters(model, saved, parameters)
        return model

    @property
    def tokenizer_file(self) -> Path:
        """The file of the tokenizer that the model was trained with."""
        return self.path / TOKENIZER_FILE


def load_parameters(
    model: LanguageModel, saved: Checkpoint, found: Mapping[str, Tensor] | None = None
) -> None:
    """Copy the parameters of a checkpoint, or those in `found`, into a model.

    Raises:
        UserError: a parameter is missing or has another shape.
    """
    found = saved.open("model") if found is None else found
    parameters = {**model.tables(), **model.blocks()}
    for name, parameter in parameters.items():
        if name not in found:
            raise UserError(f"{saved.path} holds no {name}: it is of another model")
        if found[name].shape != parameter.shape:
            raise UserError(
                f"{name} is {list(found[name].shape)} in {saved.path}, "
                f"but the model has {list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(found[name])


def require_utf8(path: Path) -> None:
    """Refuse a run folder whose model could not be loaded.

    Raises:
        UserError: its name is not UTF-8, which safetensors cannot open.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"the name {os.fsencode(path)!r} is not UTF-8, so what is saved there could not be "
            "loaded: give the folder another name"
        ) from None


def resumed_folder(out: Path, config: RunConfig, corpus: Corpus) -> RunFolder:
    """The run in `out`, to be continued with these settings and this data.

    Raises:
        UserError: there is no run, or it was trained on other data or with other settings.
    """
    folder = RunFolder.open(out)
    require_utf8(out)
    if corpus.meta.fingerprint != folder.fingerprint:
        raise UserError(
            f"{out} was trained on a corpus with fingerprint {folder.fingerprint[:12]}, "
            f"but {corpus.path} has {corpus.meta.fingerprint[:12]}"
        )
    for section in ("model", "loss", "data", "optim"):
        saved, asked = getattr(folder.config, section), getattr(config, section)
        for name in vars(saved):
            if getattr(saved, name) != getattr(asked, name):
                raise UserError(
                    f"a resumed run keeps its settings, but {section}.{name} was "
                    f"{getattr(saved, name)} in {out} and is now {getattr(asked, name)}"
                )
    if folder.config.run.seed != config.run.seed:
        raise UserError(
            f"a resumed run keeps its seed: {out} has {folder.config.run.seed}, "
            f"not {config.run.seed}"
        )
    # Runs whose settings have no precision were trained in fp32.
    saved_precision: Precision = "bf16" if folder.config.run.precision == "bf16" else "fp32"
    if config.run.precision not in ("auto", saved_precision):
        raise UserError(
            f"a resumed run keeps its precision: {out} has {saved_precision}, "
            f"not {config.run.precision}"
        )
    config = replace(config, run=replace(config.run, precision=saved_precision))
    return replace(
        folder, config=config, data=corpus.path.resolve(), budget_before=folder.config.run
    )
