from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinwire.errors import UserError
from thinwire.export.export import export

from .conftest import Trained


class RnnLmModel(nn.Module):
    """The shape of icefall's class of this name, restated."""

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        hidden_dim: int,
        num_layers: int,
        tie_weights: bool = False,
    ) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(vocab_size, embedding_dim)
        self.rnn = nn.LSTM(embedding_dim, hidden_dim, num_layers, batch_first=True)
        self.output_linear = nn.Linear(hidden_dim, vocab_size)
        if tie_weights:
            self.output_linear.weight = self.input_embedding.weight

    def forward(self, x_NL: Tensor, y_NL: Tensor) -> Tensor:
        logits = self.output_linear(self.rnn(self.input_embedding(x_NL))[0])
        return F.cross_entropy(logits.flatten(0, 1), y_NL.flatten(), reduction="none").view(
            y_NL.shape
        )


@pytest.mark.parametrize("settings", [{"layers": 2, "embedding_width": 8}, {"tied": True}])
def test_their_class_takes_the_checkpoint(
    trained: Trained,
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = trained(**settings)
    export(model, "icefall", tmp_path / "out")
    checkpoint = torch.load(tmp_path / "out/epoch-1.pt", weights_only=True)
    assert list(checkpoint) == ["model"]
    theirs = RnnLmModel(
        model.model.vocab_size,
        settings.get("embedding_width", 16),
        16,
        settings.get("layers", 1),
        settings.get("tied", False),
    )
    theirs.requires_grad_(False)
    theirs.load_state_dict(checkpoint["model"], strict=True)
    eos_id = model.tokenizer.eos_id
    for text in ("the cat sees a dog .", ""):
        ids = model.tokenizer.encode(text)
        nll_1L = theirs(torch.tensor([[eos_id, *ids]]), torch.tensor([[*ids, eos_id]]))
        assert float(nll_1L.sum()) == pytest.approx(-model.score(text).logprob, rel=1e-5)
    said = capsys.readouterr().err
    assert f"tie_weights={settings.get('tied', False)}" in said
    assert f"begin and end with token {eos_id}" in said


def test_tokens_stand_beside_it(trained: Trained, tmp_path: Path) -> None:
    model = trained()
    export(model, "icefall", tmp_path / "out")
    lines = (tmp_path / "out/tokens.txt").read_text("utf-8").splitlines()
    assert lines == [f"{model.tokenizer.token(id)} {id}" for id in range(model.model.vocab_size)]


def test_another_body_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this one is a Transformer"):
        export(trained(kind="transformer"), "icefall", tmp_path / "out")
