"""The tables of a model in the form of other programs: one input and one output row per token.

Adaptation layers are linear, so they are multiplied into the rows: the plain model gives the same
logits as the adapted one.

V vocabulary, E embedding width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.errors import UserError
from thinwire.language_model import EMBEDDING, OUTPUT_BIAS, LanguageModel
from thinwire.loss.output import SoftmaxOutput
from thinwire.models.lstm import LSTM

OUTPUT_WEIGHT = "output.weight"
HELD = (EMBEDDING, OUTPUT_WEIGHT, OUTPUT_BIAS)
HELD_PARTS = ("body.", "input_adapter.", "output_adapter.")


@dataclass(frozen=True)
class PlainTables:
    """The tables before and after the body.

    Attributes:
        embedding_VE: input rows.
        weight_VD: output rows; the same tensor as `embedding_VE` if the model ties them.
        bias_V: output biases.
    """

    embedding_VE: Tensor
    weight_VD: Tensor
    bias_V: Tensor

    @property
    def is_tied(self) -> bool:
        """Whether input and output rows are one table."""
        return self.embedding_VE is self.weight_VD


@torch.no_grad()
def plain_tables(model: LanguageModel, form: str) -> PlainTables:
    """The tables of a model, on the CPU, with its adaptation layers multiplied in.

    Args:
        model: a trained model.
        form: the format, for messages.

    Raises:
        UserError: the model has parameters besides these tables and its body.
    """
    output = model.output
    if not isinstance(output, SoftmaxOutput):
        raise UserError(
            f"{form} holds one output row per token, and loss.kind adaptive has clusters of "
            "different widths instead: train with another loss.kind"
        )
    if model.ngrams is not None:
        raise UserError(
            f"{form} has no place for n-grams, which this model looks up beside its words: train "
            "with model.ngrams 0"
        )
    for name in model.by_name():
        if name not in HELD and not name.startswith(HELD_PARTS):
            raise UserError(f"{form} has no place for {name}, which this model computes with")
    embedding_VE = model.embedding.weight.detach().cpu()
    weight_VD = embedding_VE if model.tied else output.weight.detach().cpu()
    bias_V = output.bias.detach().cpu()
    if model.output_adapter is not None:
        weight_DD = model.output_adapter.weight.cpu()
        bias_V = bias_V + weight_VD @ model.output_adapter.bias.cpu()
        weight_VD = weight_VD @ weight_DD
    if model.input_adapter is not None:
        embedding_VE = (
            embedding_VE @ model.input_adapter.weight.cpu().t() + model.input_adapter.bias.cpu()
        )
    return PlainTables(embedding_VE, weight_VD, bias_V)


def lstm_weights(model: LanguageModel, form: str) -> dict[str, Tensor]:
    """The LSTM's parameters on the CPU, named as those of one `torch.nn.LSTM` of all layers.

    Raises:
        UserError: the body is not an LSTM.
    """
    if not isinstance(model.body, LSTM):
        kind = type(model.body).__name__
        raise UserError(f"{form} holds LSTM models, and this one is a {kind}")
    return {
        f"{name.removesuffix('l0')}l{number}": parameter.detach().cpu()
        for number, layer in enumerate(model.body.layers)
        for name, parameter in layer.named_parameters()
    }
