"""The plan: every exchange forecast for one corpus and one set of settings, and the best named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import get_args

import torch

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.exchange.config import CodecName
from thinwire.language_model import LanguageModel
from thinwire.optim.build import dense_optimizer, row_optimizer
from thinwire.plan.forecast import (
    LOOPBACK,
    Forecast,
    Link,
    alone,
    async_seconds,
    periodic_seconds,
    sync_seconds,
)
from thinwire.plan.link import measure_link
from thinwire.plan.machine import Machine, measure
from thinwire.plan.traffic import Counter, Sent
from thinwire.runs.device import find_device
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective

Way = tuple[Sent, float, float]

SECONDS = 2.0
REPLICATED = ("sync", "periodic")
KINDS = (*REPLICATED, "async")
# What changes the numbers least is the best, synchronous before periodic before asynchronous and
# fp32 before int4, unless another exchange is faster by more than this.
TIE = 0.15


@dataclass(frozen=True)
class Plan:
    """What is forecast, by number of workers, and what it rests on."""

    machine: Machine
    link: Link
    num_parameters: int
    train_tokens: int
    forecasts: Sequence[Forecast]

    def best(self, workers: int, kinds: Sequence[str] = KINDS) -> Forecast:
        """The exchange to take with so many workers, of these kinds."""
        among = [f for f in self.forecasts if f.workers == workers and f.select == "rows"]
        among = [f for f in among if f.exchange in kinds]
        fastest = max(f.tokens_per_second for f in among)
        return next(f for f in among if f.tokens_per_second >= (1.0 - TIE) * fastest)


def make_plan(
    corpus: Corpus,
    config: RunConfig,
    link: Link | None,
    workers: Sequence[int],
    *,
    team: Collective | None = None,
    told: Callable[[str], None] | None = None,
) -> Plan:
    """Measure this machine, count what each exchange sends, and forecast.

    Args:
        corpus: a data folder.
        config: model, loss, data, optimiser and exchange settings; `exchange.kind` and `codec` are
            what is varied.
        link: between the workers; None: that of the team is measured; without one it is loopback.
        workers: numbers of workers to plan for.
        team: workers that plan together, each on its own machine: all call this at once, and the
            slowest of them counts. None: this one alone.
        told: hears what is being done.
    """
    counts_V = torch.from_numpy(corpus.counts_V)
    in_bf16 = config.run.precision == "bf16"
    model = LanguageModel(config.model, config.loss, counts_V, config.run.seed, in_bf16=in_bf16)
    team = team or Alone()
    told = told or (lambda sentence: None)
    told("Measuring this machine")
    own_machine = measure(corpus, config, model.to(find_device(config.run.device)), SECONDS)
    machines = [Machine(**said) for said in team.all_gather_json(asdict(own_machine))]
    machine = max(machines, key=lambda found: found.step)
    if link is None and team.size > 1:
        told("Measuring the link")
        link = measure_link(team)
    link = link or LOOPBACK
    counter = Counter(corpus, config, model)
    parameter_bytes = 4 * counter.num_parameters
    own = parameter_bytes + _state_bytes(model, config)
    forecasts = [alone(machine, own)]
    for W in workers:
        told(f"Counting what {W} workers would send")
        for select, codecs in (("rows", get_args(CodecName)), ("everything", ("fp32",))):
            everything = select == "everything"
            for kind, forecast in WAYS.items():
                copies = {"sync": own, "periodic": own + parameter_bytes, "async": parameter_bytes}
                for codec in codecs:
                    sent, step, hidden = forecast(counter, machine, link, W, codec, everything)
                    share = sent.dense_share
                    rate = W * machine.tokens / step
                    forecasts.append(
                        Forecast(
                            kind, codec, select, W, step, rate, sent.up, share, hidden, copies[kind]
                        )
                    )
    return Plan(machine, link, counter.num_parameters, len(corpus.ids("train")), tuple(forecasts))


def _state_bytes(model: LanguageModel, config: RunConfig) -> int:
    """Of the optimisers, once they have taken a step, which changes the model's blocks."""
    rows = row_optimizer(model.tables().values(), config.optim)
    dense = dense_optimizer(model.blocks().values(), config.optim)
    for block in model.blocks().values():
        block.grad = torch.zeros_like(block)
    dense.step()
    states = [*rows.state.values(), *dense.state.values()]
    return sum(t.nbytes for state in states for t in state.values() if isinstance(t, torch.Tensor))


def _sync(
    counter: Counter, machine: Machine, link: Link, workers: int, codec: str, everything: bool
) -> Way:
    sent = counter.sync(workers, codec, everything=everything)
    return sent, *sync_seconds(machine, sent, codec, link, counter.config.exchange.delay)


def _periodic(
    counter: Counter, machine: Machine, link: Link, workers: int, codec: str, everything: bool
) -> Way:
    sent = counter.periodic(workers, codec, everything=everything)
    return sent, *periodic_seconds(machine, sent, codec, link)


def _asynchronous(
    counter: Counter, machine: Machine, link: Link, workers: int, codec: str, everything: bool
) -> Way:
    sent = counter.asynchronous(workers, codec, everything=everything)
    servers = counter.config.exchange.servers
    return sent, *async_seconds(machine, sent, codec, link, workers, servers)


WAYS: dict[str, Callable[[Counter, Machine, Link, int, str, bool], Way]] = {
    "sync": _sync,
    "periodic": _periodic,
    "async": _asynchronous,
}
