"""Converts a Transformer to the Llama class of Hugging Face transformers, with the same logits.

A thinwire block differs from a Llama block in its feed-forward part, which has no gate. The output
layer has biases, which Llama's has not. Llama's unchanged class can represent both:

1. The activation is computed on the gate projection, and the up projection is the constant 1: its
   weight is zero and its bias is 1 (`mlp_bias`).
2. P channels are added. They are zero in every block and become the constant 1 after the last norm;
   the output rows have the bias in the first of them. For this, a last layer without attention adds
   S times the normalised state to the state, and S to the added channels. S is so large (2^40) that
   the last norm sees S (n, 1) for the normalised state n. Its length is S sqrt(D + P) for every n,
   so dividing by it gives (n, 1). fp32 and bf16 can represent S, fp16 cannot.

With P added channels a norm divides by a root mean square over D + P numbers; the gains and the
epsilon correct for it.

V vocabulary, D width, P added channels, W = D + P, F width of the feed-forward part.
"""

from __future__ import annotations

from math import lcm, sqrt
from typing import Any

import torch
from torch import Tensor

from thinwire.export.plain import PlainTables
from thinwire.models.transformer import ROTARY_BASE, Transformer

ALIGNMENT = 32  # quantisation in blocks of 32 weights needs widths that are multiples of 32
SCALE = 2.0**40
OPEN = 16.0  # gelu(16) is 16 in fp32

Config = dict[str, Any]


@torch.no_grad()
def llama(
    body: Transformer, tables: PlainTables, max_positions: int
) -> tuple[Config, dict[str, Tensor]]:
    """The entries of `config.json` for the model, and the parameters by Llama's names."""
    V, D = tables.weight_VD.shape
    first = body.layers[0]
    heads, F = int(first.heads), int(first.feed_in.out_features)  # type: ignore[arg-type,union-attr]
    P = lcm(heads, ALIGNMENT)
    if P > F - D:  # the added layer passes W numbers through a feed-forward part of width F
        P = heads
    W = D + P
    epsilon = torch.finfo(torch.float32).eps if body.norm.eps is None else body.norm.eps
    widen = body.widen.weight.cpu() if isinstance(body.widen, torch.nn.Linear) else None
    embedding_VD = tables.embedding_VE if widen is None else tables.embedding_VE @ widen.t()
    parameters = {"model.embed_tokens.weight": _padded(embedding_VD, V, W)}
    for number, block in enumerate(body.layers):
        found = {name: parameter.cpu() for name, parameter in block.named_parameters()}
        parts = zip("qkv", found["attend_in.weight"].chunk(3), strict=True)
        layer = {
            **{f"self_attn.{name}_proj.weight": _padded(rows, D, W) for name, rows in parts},
            "self_attn.o_proj.weight": _padded(found["attend_out.weight"], W, D),
            "input_layernorm.weight": _gains(found["attend_norm.weight"] * sqrt(D / W), W),
            "post_attention_layernorm.weight": _gains(found["feed_norm.weight"] * sqrt(D / W), W),
            "mlp.gate_proj.weight": _padded(found["feed_in.weight"], F, W),
            "mlp.gate_proj.bias": torch.zeros(F),
            "mlp.up_proj.weight": torch.zeros(F, W),
            "mlp.up_proj.bias": torch.ones(F),
            "mlp.down_proj.weight": _padded(found["feed_out.weight"], W, F),
            "mlp.down_proj.bias": torch.zeros(W),
        }
        parameters |= {f"model.layers.{number}.{name}": rows for name, rows in layer.items()}
    last = _normalising_layer(D, W, F)
    parameters |= {f"model.layers.{len(body.layers)}.{name}": rows for name, rows in last.items()}
    parameters["model.norm.weight"] = _gains(body.norm.weight.cpu(), W)
    output_VW = _padded(tables.weight_VD, V, W)
    output_VW[:, D] = tables.bias_V
    parameters["lm_head.weight"] = output_VW
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": V,
        "hidden_size": W,
        "intermediate_size": F,
        "num_hidden_layers": len(body.layers) + 1,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": D // heads,
        "hidden_act": "gelu",
        "mlp_bias": True,
        "attention_bias": False,
        "rms_norm_eps": epsilon * D / W,
        "max_position_embeddings": max_positions,
        "rope_theta": ROTARY_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "tie_word_embeddings": False,
    }
    return config, parameters


def _normalising_layer(D: int, W: int, F: int) -> dict[str, Tensor]:
    """The last layer, which makes the added channels the constant 1."""
    open_F = torch.zeros(F)
    open_F[:W] = OPEN
    ones_F = torch.zeros(F)
    ones_F[D:W] = 1.0
    return {
        **{f"self_attn.{name}_proj.weight": torch.zeros(D, W) for name in "qkv"},
        "self_attn.o_proj.weight": torch.zeros(W, D),
        "input_layernorm.weight": torch.ones(W),
        "post_attention_layernorm.weight": _gains(torch.full((D,), sqrt(D / W)), W),
        "mlp.gate_proj.weight": torch.zeros(F, W),
        "mlp.gate_proj.bias": open_F,
        "mlp.up_proj.weight": _padded(torch.eye(D), F, W),
        "mlp.up_proj.bias": ones_F,
        "mlp.down_proj.weight": _padded(torch.eye(W) * (SCALE / OPEN), W, F),
        "mlp.down_proj.bias": torch.zeros(W),
    }


def _padded(weight: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix with rows and columns of zeros added."""
    wide = torch.zeros(rows, columns)
    wide[: weight.shape[0], : weight.shape[1]] = weight
    return wide


def _gains(gain_D: Tensor, W: int) -> Tensor:
    return torch.cat([gain_D, torch.ones(W - len(gain_D))])
