"""An LSTM language model trained by thinwire, for Hugging Face transformers.

This file is copied beside the weights that it reads, and works without thinwire:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

A sentence starts with the end-of-line token. The state is not cached: `generate` reads the whole
text again for each token.

B texts, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class ThinwireLSTMConfig(PretrainedConfig):
    """Sizes of the model."""

    model_type = "thinwire_lstm"

    def __init__(
        self,
        vocab_size: int = 2,
        embedding_size: int = 1,
        hidden_size: int = 1,
        num_hidden_layers: int = 1,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**others)


class ThinwireLSTMForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, LSTM layers, and an output layer with biases."""

    config_class = ThinwireLSTMConfig

    def __init__(self, config: ThinwireLSTMConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.rnn = nn.LSTM(
            config.embedding_size, config.hidden_size, config.num_hidden_layers, batch_first=True
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutput:
        """Logits `[B, T, V]` of the token after each, and with labels the mean loss.

        `attention_mask` may hide padding before a text, after it, or both.
        """
        T = input_ids.shape[1]
        position_BT = torch.arange(T, device=input_ids.device).expand_as(input_ids)
        if attention_mask is not None:
            # Padding before a text is moved behind it; afterwards hidden states are moved back.
            padding_B1 = attention_mask.long().argmax(1, keepdim=True)
            input_ids = input_ids.gather(1, (position_BT + padding_B1) % T)
            position_BT = (position_BT - padding_B1) % T
        hidden_BTD, _ = self.rnn(self.embedding(input_ids))
        if attention_mask is not None:
            hidden_BTD = hidden_BTD.gather(1, position_BT[..., None].expand_as(hidden_BTD))
        logits_BTV = self.lm_head(hidden_BTD)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(
                logits_BTV[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
            )
        return CausalLMOutput(loss=loss, logits=logits_BTV)
