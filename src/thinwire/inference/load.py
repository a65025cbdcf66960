"""Loads a trained model from its run folder: one step, an adapter, or an average of steps."""

from __future__ import annotations

from pathlib import Path

import torch

from thinwire.cores import num_threads
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.trained_model import TrainedModel
from thinwire.runs.adapter_file import AdapterFile
from thinwire.runs.averaging import average_parameters
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.device import find_device
from thinwire.runs.folder import RunFolder


def load(
    run: Path | str,
    step: int | None = None,
    *,
    adapter: str | None = None,
    average: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> TrainedModel:
    """Load a trained model.

    Args:
        run: a run folder.
        step: the step to load; None: the step with the best validation perplexity.
        adapter: the name of adaptation layers in the run folder, made by `thinwire adapt --method
            layers`. The step that they were trained on is loaded.
        average: instead of one step, the mean of the parameters of this many newest steps on disk.
        device: `auto` (CUDA if there is a GPU, else the CPU), `cpu`, `cuda` or `mps`.
        threads: compute threads of this process from now on; None: leave them as they are.

    Returns:
        The model, ready to score and to generate text.

    Raises:
        UserError: there is no such run or step, the step is damaged, or the tokenizer belongs to
            another model. A damaged step that was not asked for by its number is skipped with a
            warning, and the newest whole step is loaded instead.

    Examples:
        >>> import thinwire
        >>> model = thinwire.load("run", threads=1)
        >>> model.score("the cat sees a dog").num_tokens
        6
    """
    folder = RunFolder.open(Path(run))
    if threads is not None:
        if threads < 1:
            raise UserError(f"{threads} threads were asked for, but it must be 1 or more")
        torch.set_num_threads(num_threads(threads))
    where = find_device(device)
    tokenizer = Tokenizer.load(folder.tokenizer_file)
    if average is not None and (step is not None or adapter is not None):
        raise UserError("an average is of the newest steps: name no step and no adapter with it")
    if average is not None:
        checkpoints = Checkpoints(folder.path)
        steps, parameters = average_parameters(checkpoints, average)
        saved = checkpoints.load(steps[-1])
        model = folder.load_model(saved, parameters).to(where)
    elif adapter is not None:
        if step is not None:
            raise UserError("an adapter goes with the step that it was trained on: name no step")
        layers = AdapterFile.open(folder.path, adapter)
        folder, saved = layers.on(folder)
        model = folder.load_model(saved, layers.parameters).to(where)
    else:
        saved = Checkpoints(folder.path).load("best" if step is None else step)
        model = folder.load_model(saved).to(where)
    for name, of_model, of_tokenizer in (
        ("words", model.vocab_size, tokenizer.vocab_size),
        ("for the id of the end of a line", folder.eos_id, tokenizer.eos_id),
        ("for the id of unknown words", folder.unk_id, tokenizer.unk_id),
    ):
        if of_model != of_tokenizer:
            raise UserError(
                f"{folder.tokenizer_file} does not fit the model: it has {of_tokenizer} {name}, "
                f"and the model has {of_model}"
            )
    return TrainedModel(folder, saved.step, tokenizer, model)
