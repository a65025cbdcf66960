"""Adapts a model that is loaded already: what `TrainedModel.adapt` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thinwire.adapt.adapt import adapt
from thinwire.adapt.options import AdaptOptions
from thinwire.inference.load import load
from thinwire.inference.trained_model import TrainedModel


def adapt_loaded(
    model: TrainedModel,
    text: str | Path | Sequence[str | Path],
    out: str | Path,
    mix: str | Path | None,
    options: AdaptOptions,
) -> TrainedModel:
    """Adapt the step that `model` was loaded from, and load the result on the same device.

    Args:
        model: the model to adapt; it and its run folder stay as they are.
        text: files, folders or globs of new text.
        out: the run folder to create.
        mix: old text or its data folder; None: the data folder of the model, if still there.
        options: the settings of the adaptation.

    Raises:
        UserError: what `thinwire adapt` would refuse.
    """
    texts = [text] if isinstance(text, str | Path) else text
    adapt(
        model.run.path,
        [str(one) for one in texts],
        out,
        options,
        mix_with=None if mix is None else str(mix),
        step=model.loaded_step,
    )
    return load(out, device=model.model.embedding.weight.device.type)
