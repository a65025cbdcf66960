"""The exchange of a single worker: fetch gathers rows, and update is the optimisers' step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from thinwire.exchange.contract import Exchange, ExchangeState
from thinwire.optim.updater import Updater, take_gradients
from thinwire.touched import Touched
from thinwire.transport.collective import Done, Pending


class Local(Exchange):
    """Applies gradients to the parameters of this worker, and sends nothing.

    Args:
        updater: holds the parameters and their optimisers.
    """

    def __init__(self, updater: Updater) -> None:
        self.updater = updater
        self._pushed: tuple[Touched, dict[str, Tensor], dict[str, Tensor]] | None = None

    def announce(self, touched: Touched) -> None:
        """Nothing to do: there are no other workers."""

    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """See `Exchange`."""
        return self.updater.rows(touched)

    def push(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> None:
        """See `Exchange`."""
        self._pushed = touched, take_gradients(rows), take_gradients(blocks)

    def update(self) -> float:
        """See `Exchange`."""
        pushed, self._pushed = self._pushed, None
        assert pushed is not None, "push comes before update"
        return self.updater.apply(*pushed)

    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """The numbers themselves."""
        return Done(list(numbers))

    def traffic(self) -> None:
        """None: there are no other workers."""

    def flush(self) -> None:
        """Apply the weight decay that is pending for untouched rows."""
        self.updater.flush()

    def merge_optimizers(self) -> None:
        """Nothing to do: there are no other workers."""

    def state(self) -> ExchangeState:
        """Empty: the run saves the optimisers' state itself."""
        return ExchangeState()

    def load_state(self, step: int, state: ExchangeState) -> None:
        """Nothing to do."""
