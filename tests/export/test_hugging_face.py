from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.errors import UserError
from thinwire.export.export import export
from thinwire.inference.trained_model import TrainedModel

from .conftest import Trained

transformers = pytest.importorskip("transformers")

TRANSFORMERS: list[dict[str, Any]] = [
    {"kind": "transformer", "layers": 2},
    {"kind": "transformer", "width": 36, "heads": 3, "embedding_width": 8},
    {"kind": "transformer", "tied": True, "loss": "full"},
]
LSTMS: list[dict[str, Any]] = [{"layers": 2, "embedding_width": 8}, {"tied": True}]


def logits(trained: TrainedModel, ids_BT: Tensor) -> Tensor:
    """The logits of thinwire's own model."""
    hidden_BTD, _ = trained.model.hidden(ids_BT, None)
    output = trained.model.output
    return hidden_BTD @ output.weight.detach().t() + output.bias.detach()


def loaded(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("settings", TRANSFORMERS)
def test_a_transformer_is_a_stock_llama(
    trained: Trained, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = trained(**settings)
    export(model, "hf", tmp_path / "out")
    llama = loaded(tmp_path / "out")
    assert type(llama) is transformers.LlamaForCausalLM
    torch.manual_seed(1)
    for B, T in ((1, 1), (2, 5), (3, 12)):
        ids_BT = torch.randint(model.model.vocab_size, (B, T))
        with torch.no_grad():
            found_BTV = llama(ids_BT).logits
        torch.testing.assert_close(found_BTV, logits(model, ids_BT), atol=1e-4, rtol=0)
        assert found_BTV.std() > 0.1


@pytest.mark.parametrize("settings", LSTMS)
def test_an_lstm_brings_its_code(
    trained: Trained, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(**settings)
    export(model, "hf", tmp_path / "out")
    lstm = loaded(tmp_path / "out", trust_remote_code=True)
    assert type(lstm).__name__ == "ThinwireLSTMForCausalLM"
    torch.manual_seed(1)
    for B, T in ((1, 1), (2, 5), (3, 12)):
        ids_BT = torch.randint(model.model.vocab_size, (B, T))
        with torch.no_grad():
            found_BTV = lstm(ids_BT).logits
        torch.testing.assert_close(found_BTV, logits(model, ids_BT), atol=1e-4, rtol=0)


def test_padding_changes_nothing(trained: Trained, tmp_path: Path) -> None:
    model = trained(**LSTMS[0])
    export(model, "hf", tmp_path / "out")
    lstm = loaded(tmp_path / "out", trust_remote_code=True)
    ids_T = torch.tensor([3, 1, 4, 1, 5])
    padded_BT = torch.zeros(3, 8, dtype=torch.int64)
    mask_BT = torch.zeros(3, 8, dtype=torch.int64)
    for row, before in enumerate((0, 2, 3)):
        padded_BT[row, before : before + 5] = ids_T
        mask_BT[row, before : before + 5] = 1
    with torch.no_grad():
        found_BTV = lstm(padded_BT, attention_mask=mask_BT).logits
    for row in found_BTV[mask_BT.bool()].view(3, 5, -1):
        torch.testing.assert_close(row, logits(model, ids_T[None])[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [TRANSFORMERS[0], LSTMS[0]])
def test_tokenizer_and_generate(trained: Trained, settings: dict[str, Any], tmp_path: Path) -> None:
    model = trained(**settings)
    export(model, "hf", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    eos_id = model.tokenizer.eos_id
    given = tokenizer("the cat sees", return_tensors="pt")
    assert given["input_ids"].tolist() == [[eos_id, *model.tokenizer.encode("the cat sees")]]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (eos_id, eos_id)
    assert tokenizer.unk_token_id == model.tokenizer.unk_id
    network = loaded(tmp_path / "out", trust_remote_code=True)
    written = network.generate(
        **given, max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=False
    )[0]
    ids = given["input_ids"][0].tolist()
    for _ in range(6):  # the most probable token that is not the unknown word
        logit_V = logits(model, torch.tensor([ids]))[0, -1]
        logit_V[model.tokenizer.unk_id] = -torch.inf
        ids.append(int(logit_V.argmax()))
    assert written.tolist() == ids
    settings_of = json.loads((tmp_path / "out/generation_config.json").read_text("utf-8"))
    assert settings_of["suppress_tokens"] == [model.tokenizer.unk_id]


def test_llama_caches(trained: Trained, tmp_path: Path) -> None:
    model = trained(**TRANSFORMERS[0])
    export(model, "hf", tmp_path / "out")
    llama, prompt = loaded(tmp_path / "out"), torch.tensor([[1, 2, 3]])
    with_cache, without = (
        llama.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=5,
            do_sample=False,
            use_cache=use_cache,
        ).tolist()
        for use_cache in (True, False)
    )
    assert with_cache == without


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "causal_conv", "layers": 2}, "and this model is a CausalConv"),
        ({"loss": "adaptive", "width": 64}, "clusters of different widths"),
    ],
)
def test_what_it_cannot_hold(
    trained: Trained, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        export(trained(**settings), "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
