"""LSTM layers with dropout before, between and after them.

B streams, T tokens, E embedding width, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinwire.matmul import ONEDNN_KNOWS_BF16
from thinwire.models.contract import Body, State
from thinwire.models.dropout import DropoutMasks


class LSTM(Body):
    """A stack of PyTorch's LSTM layers; carries (h, c) of each layer."""

    carries_state = True

    def __init__(self, input_width: int, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.LSTM(input_width if layer == 0 else width, width) for layer in range(layers)
        )

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Weights are uniform in +-1/sqrt(D); biases are 0, but 1 for the forget gate.

        So the forget gate starts open: Jozefowicz et al. 2015, "An Empirical Exploration of
        Recurrent Network Architectures".
        """
        for layer in self.layers:
            assert isinstance(layer, nn.LSTM)
            D = layer.hidden_size
            for name, parameter in layer.named_parameters():
                if name.startswith("weight"):
                    parameter.uniform_(-(D**-0.5), D**-0.5, generator=generator)
                else:
                    parameter.zero_()
                if name.startswith("bias_ih"):
                    parameter[D : 2 * D] = 1.0  # the order of the gates is i, f, g, o

    def forward(
        self, x_BTE: Tensor, state: State | None, dropout: DropoutMasks | None
    ) -> tuple[Tensor, State]:
        """See `Body`; the state is (h, c) of the first layer, then of the second, each `[B, D]`."""
        after: list[Tensor] = []
        x_BTD = dropout.drop(x_BTE) if dropout else x_BTE
        for index, layer in enumerate(self.layers):
            before = None if state is None else tuple(s[None] for s in state[2 * index :][:2])
            with torch.autocast(x_BTD.device.type, enabled=_may_round(x_BTD)):
                hidden_TBD, (h, c) = layer(x_BTD.transpose(0, 1).contiguous(), before)
            after += [h[0], c[0]]
            x_BTD = hidden_TBD.transpose(0, 1)
            if dropout:
                x_BTD = dropout.drop(x_BTD)
        return x_BTD, tuple(after)


def _may_round(x: Tensor) -> bool:
    """Whether products are computed in bf16. On a CPU this needs a oneDNN that supports bf16,
    because PyTorch always uses oneDNN for LSTMs."""
    on_cpu = x.device.type == "cpu"
    return torch.is_autocast_enabled(x.device.type) and (ONEDNN_KNOWS_BF16 or not on_cpu)
