from __future__ import annotations

from typing import Any

import pytest

from thinwire.errors import UserError
from thinwire.models.config import ModelConfig


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "gru"}, "kind is gru, which is none of lstm, transformer, causal_conv, and"),
        ({"width": 0}, "model.width is 0, and must be 1 or more"),
        ({"layers": 0}, "model.layers is 0, and must be 1 or more"),
        ({"heads": -1}, "model.heads is -1, and must be 1 or more"),
        ({"embedding_width": -1}, "model.embedding_width is -1, and must be 0 or more"),
        ({"dropout": 1.0}, r"model.dropout is 1.0, but it must lie in \[0, 1\)"),
        ({"dropout": float("nan")}, "model.dropout is nan"),
        ({"tied": True, "embedding_width": 8}, "embedding_width is 8 and model.width 256"),
        ({"ngrams": -1}, "model.ngrams is -1, and must be 0 or more"),
        ({"ngrams": 17}, "model.ngrams is 17, and must be 16 or less"),
        ({"ngram_rows": 0}, "model.ngram_rows is 0, and must be 1 or more"),
        ({"ngram_rows": 10**15}, "model.ngram_rows is 1000000000000000, and must be 1099511627776"),
        ({"kernel": 1}, "model.kernel is 1, and must be 2 or more"),
        ({"dilation": 0}, "model.dilation is 0, and must be 1 or more"),
        ({"window": 1}, "model.window is 1, and must be 2 or more"),
        ({"kind": "causal_conv", "width": 12}, "width is 12, .* twice its 4 heads"),
        ({"kind": "causal_conv", "layers": 7}, "look more than 16,384 tokens"),
        ({"kind": "transformer", "width": 12}, "width is 12, .* twice its 4 heads"),
    ],
)
def test_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ModelConfig(**settings)


def test_embeddings_are_as_wide_as_the_model_unless_told() -> None:
    assert ModelConfig(width=8).input_width == 8
    assert ModelConfig(width=8, embedding_width=3).input_width == 3
