"""What a model body is.

B streams, T tokens, R embedding rows at hand, E embedding width, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinwire.models.noise import Noise

State = tuple[Tensor, ...]
"""What a body carries from one batch to the next: tensors whose first dimension is the stream.
Empty for a body that carries nothing."""


class Body(nn.Module, ABC):
    """Embedded words in, hidden states out.

    A subclass that can be imported is a body of your own: `model.kind` names it as
    `package.module:Class`, and its constructor takes a `ModelConfig`.

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
        ...     def forward(self, x_BTE, state, noise):
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
    """Whether the state makes the past beyond the batch visible."""

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters afresh."""

    def embed(self, rows_RE: Tensor, ids_BT: Tensor, more_BTE: Tensor | None = None) -> Tensor:
        """What `forward` takes, from embedding rows and the row of each token.

        Whatever follows from a token alone can be computed here, once per distinct token.

        Args:
            rows_RE: embedding rows.
            ids_BT: which of them each token has.
            more_BTE: what is added to each position's row; None: nothing.
        """
        x_BTE = F.embedding(ids_BT, rows_RE)
        return x_BTE if more_BTE is None else x_BTE + more_BTE

    @abstractmethod
    def forward(
        self, x_BTE: Tensor, state: State | None, noise: Noise | None
    ) -> tuple[Tensor, State]:
        """Hidden states `[B, T, D]` and the state after the last token.

        Args:
            x_BTE: embedded words, as `embed` returns them.
            state: where to go on from; None: afresh.
            noise: the step's dropout masks; None: no dropout (evaluation).
        """


def restart(state: State, fresh_B: Tensor) -> State:
    """The state with the marked streams set back to the beginning."""
    return tuple(s.masked_fill(fresh_B.view(-1, *[1] * (s.dim() - 1)), 0.0) for s in state)
