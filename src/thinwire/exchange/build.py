"""Creates the exchange of workers that hold the whole model."""

from __future__ import annotations

from thinwire.exchange.config import ExchangeConfig
from thinwire.exchange.contract import Exchange
from thinwire.exchange.local import Local
from thinwire.exchange.periodic import Periodic
from thinwire.exchange.sync import Sync
from thinwire.optim.updater import Updater
from thinwire.transport.collective import Collective


def make_exchange(
    updater: Updater, collective: Collective, config: ExchangeConfig, seed: int
) -> Exchange:
    """The exchange that `config.kind` names; for a single worker, `Local`."""
    if collective.size == 1:
        return Local(updater)
    make = Sync if config.kind == "sync" else Periodic
    return make(updater, collective, config, seed)
