from __future__ import annotations

from pathlib import Path

import torch

from thinwire.export.plain import lstm_weights, plain_tables
from thinwire.language_model import LanguageModel
from thinwire.loss.config import LossConfig
from thinwire.models.config import ModelConfig


def test_adaptation_layers_are_folded_in() -> None:
    config = ModelConfig(width=6, embedding_width=4, layers=2, adapters="both")
    counts_V = torch.arange(1, 10)
    model = LanguageModel(config, LossConfig(kind="full"), counts_V, seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    tables = plain_tables(model, "a test")
    lstm = torch.nn.LSTM(4, 6, 2, batch_first=True)
    lstm.load_state_dict(lstm_weights(model, "a test"))
    ids_BT = torch.tensor([[1, 5, 8], [0, 0, 2]])
    hidden_BTD, _ = lstm(tables.embedding_VE[ids_BT])
    logits_BTV = hidden_BTD @ tables.weight_VD.t() + tables.bias_V
    theirs_BTD, _ = model.hidden(ids_BT, None)
    expected_NV = model.output.distribution(theirs_BTD.flatten(0, 1))
    torch.testing.assert_close(
        logits_BTV.log_softmax(2).flatten(0, 1), expected_NV, atol=1e-4, rtol=1e-4
    )


def test_a_tied_table_stays_one(tmp_path: Path) -> None:
    config = ModelConfig(width=6, tied=True)
    model = LanguageModel(config, LossConfig(kind="full"), torch.ones(5), seed=1)
    assert plain_tables(model, "a test").is_tied
