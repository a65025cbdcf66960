"""A model folder as Hugging Face transformers reads it.

A Transformer becomes a `LlamaForCausalLM` (see `llama`). An LSTM becomes a class of its own, whose
code is in the same folder as the weights and needs `trust_remote_code=True`.

The model starts each text with the end-of-line token, so this token is both `bos_token` and
`eos_token`: the exported `tokenizer.json` adds it before a text, thinwire's adds it after a line.
"""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

from thinwire.errors import UserError
from thinwire.export.llama import llama
from thinwire.export.plain import lstm_weights, plain_tables
from thinwire.inference.trained_model import TrainedModel
from thinwire.models.lstm import LSTM
from thinwire.models.transformer import Transformer
from thinwire.runs.tensor_file import save_tensors

FORM = "the format of Hugging Face"
LSTM_CODE = "modeling_thinwire_lstm"


def write_hugging_face(trained: TrainedModel, folder: Path) -> None:
    """Write weights, `config.json`, `generation_config.json` and the tokenizer.

    Raises:
        UserError: the body is neither a Transformer nor an LSTM, or the loss is adaptive.
    """
    body, tables = trained.model.body, plain_tables(trained.model, FORM)
    if isinstance(body, Transformer):
        config, parameters = llama(body, tables, trained.run.config.data.length)
    elif isinstance(body, LSTM):
        weights = lstm_weights(trained.model, FORM)
        parameters = {
            "embedding.weight": tables.embedding_VE,
            **{f"rnn.{name}": weight for name, weight in weights.items()},
            "lm_head.weight": tables.weight_VD.clone(),  # safetensors refuses a table twice
            "lm_head.bias": tables.bias_V,
        }
        config = {
            "model_type": "thinwire_lstm",
            "architectures": ["ThinwireLSTMForCausalLM"],
            "auto_map": {
                "AutoConfig": f"{LSTM_CODE}.ThinwireLSTMConfig",
                "AutoModelForCausalLM": f"{LSTM_CODE}.ThinwireLSTMForCausalLM",
            },
            "vocab_size": tables.embedding_VE.shape[0],
            "embedding_size": tables.embedding_VE.shape[1],
            "hidden_size": tables.weight_VD.shape[1],
            "num_hidden_layers": len(body.layers),
            "tie_word_embeddings": False,
        }
        copyfile(Path(__file__).with_name(f"{LSTM_CODE}.py"), folder / f"{LSTM_CODE}.py")
    else:
        raise UserError(
            f"{FORM} is written for Transformers and LSTMs, and this model is a "
            f"{type(body).__name__}"
        )
    eos_id, unk_id = trained.tokenizer.eos_id, trained.tokenizer.unk_id
    special = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    _write_json(folder / "config.json", {**config, **special, "dtype": "float32"})
    generation: dict[str, Any] = {**special, "do_sample": True}
    if unk_id is not None:
        generation["suppress_tokens"] = [unk_id]
    if isinstance(body, LSTM):
        generation["use_cache"] = False
    _write_json(folder / "generation_config.json", generation)
    save_tensors(parameters, folder / "model.safetensors", {"format": "pt"})
    _write_tokenizer(trained, folder)


def _write_tokenizer(trained: TrainedModel, folder: Path) -> None:
    tokenizer = trained.tokenizer
    eos = tokenizer.token(tokenizer.eos_id)
    content = json.loads(trained.run.tokenizer_file.read_text(encoding="utf-8"))
    start = {"SpecialToken": {"id": eos, "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            start,
            {"Sequence": {"id": "A", "type_id": 0}},
            start,
            {"Sequence": {"id": "B", "type_id": 0}},
        ],
        "special_tokens": {eos: {"id": eos, "ids": [tokenizer.eos_id], "tokens": [eos]}},
    }
    # On one line: with line breaks `json` takes its slow way, seconds for a million words.
    (folder / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    about: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eos,
        "eos_token": eos,
        "pad_token": eos,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if tokenizer.unk_id is not None:
        about["unk_token"] = tokenizer.token(tokenizer.unk_id)
    if isinstance(trained.model.body, Transformer):
        about["model_max_length"] = trained.run.config.data.length
    _write_json(folder / "tokenizer_config.json", about)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
