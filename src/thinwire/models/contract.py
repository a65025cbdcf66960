"""The contract of model bodies.

B streams, T tokens, R gathered embedding rows, E embedding width, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinwire.models.dropout import DropoutMasks

State = tuple[Tensor, ...]
"""The state that a body carries from one batch to the next: tensors whose first dimension is the
stream. It is empty for a body that carries no state."""


class Body(nn.Module, ABC):
    """Turns embedded words into hidden states.

    You can use your own body: `model.kind` names a subclass that can be imported, as
    `package.module:Class`. Its constructor takes a `ModelConfig`.

    Examples:
        A bag of words with a decaying memory, by hand:

        >>> import torch, thinwire
        >>> class Memory(thinwire.Body):
        ...     carries_state = True
        ...     def __init__(self, config):
        ...         super().__init__()
        ...         self.mix = torch.nn.Linear(config.input_width, config.width)
        ...     def initialise(self, generator):
        ...         torch.nn.init.normal_(self.mix.weight, 0.0, 0.1, generator=generator)
        ...         torch.nn.init.zeros_(self.mix.bias)
        ...     def forward(self, x_BTE, state, dropout):
        ...         (memory_BE,) = state or (torch.zeros_like(x_BTE[:, 0]),)
        ...         memories = []
        ...         for x_BE in x_BTE.unbind(1):
        ...             memory_BE = 0.9 * memory_BE + x_BE
        ...             memories.append(memory_BE)
        ...         return self.mix(torch.stack(memories, 1)).tanh(), (memory_BE,)
        >>> body = Memory(thinwire.ModelConfig(width=16))
        >>> hidden, state = body(torch.randn(2, 5, 16), None, None)
        >>> tuple(hidden.shape)
        (2, 5, 16)
    """

    carries_state: bool
    """Whether the state contains information about tokens before the batch."""

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Initialise all parameters with random numbers from `generator`."""

    def embed(self, rows_RE: Tensor, ids_BT: Tensor, more_BTE: Tensor | None = None) -> Tensor:
        """The input of `forward`, from embedding rows and the row index of each token.

        A body may compute here what depends on a single token only, once per distinct token.

        Args:
            rows_RE: embedding rows.
            ids_BT: for each token, the index of its row in `rows_RE`.
            more_BTE: vectors to add to each position's row; None: none.
        """
        x_BTE = F.embedding(ids_BT, rows_RE)
        return x_BTE if more_BTE is None else x_BTE + more_BTE

    @abstractmethod
    def forward(
        self, x_BTE: Tensor, state: State | None, dropout: DropoutMasks | None
    ) -> tuple[Tensor, State]:
        """Hidden states `[B, T, D]` and the state after the last token.

        Args:
            x_BTE: embedded words, as `embed` returns them.
            state: the state after the previous token; None: start without a past.
            dropout: the dropout masks of the step; None: no dropout (evaluation).
        """


def reset_streams(state: State, fresh_B: Tensor) -> State:
    """The state with the marked streams reset to the beginning, which is zero."""
    return tuple(s.masked_fill(fresh_B.view(-1, *[1] * (s.dim() - 1)), 0.0) for s in state)
