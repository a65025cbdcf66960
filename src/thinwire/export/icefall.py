"""The checkpoint of icefall's RNN language model (`rnn_lm/model.py`, class `RnnLmModel`).

`epoch-1.pt` contains `{"model": state_dict}`, written by `torch.save` because icefall reads it with
`torch.load`. It has only tensors and their names, so `torch.load(..., weights_only=True)` can load
it. thinwire itself never reads such a file.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch

from thinwire.console import print_line, warn
from thinwire.export.plain import lstm_weights, plain_tables
from thinwire.export.words import write_symbols
from thinwire.inference.trained_model import TrainedModel

FORM = "icefall's checkpoint"
CHECKPOINT = "epoch-1.pt"
SENTENCE_END = 1  # icefall's scripts: sos_id = eos_id = 1, blank 0


def write_icefall(trained: TrainedModel, folder: Path) -> None:
    """Write `epoch-1.pt` and `tokens.txt`.

    Raises:
        UserError: icefall's class cannot represent the model.
    """
    weights = lstm_weights(trained.model, FORM)
    tables = plain_tables(trained.model, FORM)
    state = {
        "input_embedding.weight": tables.embedding_VE,
        **{f"rnn.{name}": weight for name, weight in weights.items()},
        "output_linear.weight": tables.weight_VD,
        "output_linear.bias": tables.bias_V,
    }
    # In memory first: on a full disk PyTorch's own writer raises no OSError.
    content = BytesIO()
    torch.save({"model": state}, content)
    (folder / CHECKPOINT).write_bytes(content.getbuffer())
    write_symbols(trained.tokenizer, folder / "tokens.txt")
    vocab_size, embedding_width = tables.embedding_VE.shape
    print_line(
        f"RnnLmModel(vocab_size={vocab_size}, embedding_dim={embedding_width}, "
        f"hidden_dim={tables.weight_VD.shape[1]}, num_layers={len(weights) // 4}, "
        f"tie_weights={tables.is_tied})",
    )
    if trained.tokenizer.eos_id != SENTENCE_END:
        warn(
            f"this model's sentences begin and end with token {trained.tokenizer.eos_id}, and "
            f"icefall's scripts use token {SENTENCE_END} unless told otherwise: prepare the text "
            "with the recogniser's tokens, or tell them"
        )
