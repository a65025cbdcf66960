"""The plan: every exchange forecast for one corpus and one set of settings, and the best named.

What the best is depends on settings that are the exchange's own affair, too: how many sequences a
worker takes a step, and how many steps it takes alone. Where they stand at their defaults, a few
others are forecast besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import get_args

import torch

from thinwire.config import RunConfig
from thinwire.data.config import DataConfig
from thinwire.data.corpus import Corpus
from thinwire.exchange.config import CodecName, ExchangeConfig
from thinwire.exchange.turns import Turns
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
from thinwire.plan.learning import learning
from thinwire.plan.link import measure_link
from thinwire.plan.machine import Machine, measure, measure_again
from thinwire.plan.traffic import Counter
from thinwire.runs.device import find_device
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective

SECONDS = 2.0
REPLICATED = ("sync", "periodic")
KINDS = (*REPLICATED, "async")
# What changes the numbers least is the best, synchronous before periodic before asynchronous and
# fp32 before int4, unless another exchange learns faster by more than this.
TIE = 0.05
BATCHES = (16, 32, 64)
# Of a periodic exchange: local_steps, fragments, row_steps, overlap_steps.
TURNS = ((4, 4, 0, 0), (4, 1, 16, 1), (4, 1, 16, 2), (8, 1, 32, 0))


@dataclass(frozen=True)
class Plan:
    """What is forecast, by number of workers, and what it rests on."""

    machine: Machine
    link: Link
    num_parameters: int
    train_tokens: int
    forecasts: Sequence[Forecast]
    """With the settings that were given."""
    others: Sequence[Forecast] = ()
    """With other batches and local steps."""

    def best(self, workers: int, kinds: Sequence[str] = KINDS) -> Forecast:
        """The exchange to take with so many workers, of these kinds."""
        among = [f for f in (*self.forecasts, *self.others) if f.workers == workers]
        among = [f for f in among if f.select == "rows" and f.exchange in kinds]
        fastest = max(f.learnt_per_second for f in among)
        return next(f for f in among if f.learnt_per_second >= (1.0 - TIE) * fastest)

    def worth(self, forecast: Forecast) -> float:
        """How many times sooner than one worker it reaches a perplexity."""
        return forecast.learnt_per_second / self.forecasts[0].learnt_per_second


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
            what is varied and, where they stand at their defaults, `data.batch` and
            `exchange.local_steps`, `fragments` and `row_steps`.
        link: between the workers; None: that of the team is measured; without one it is loopback.
        workers: numbers of workers to plan for.
        team: workers that plan together, each on its own machine: all call this at once, and the
            slowest of them counts. None: this one alone.
        told: hears what is being done.
    """
    team = team or Alone()
    told = told or (lambda sentence: None)
    model = _model(corpus, config)
    told("Measuring this machine")
    machine = _slowest(team, measure(corpus, config, model, SECONDS))
    if link is None and team.size > 1:
        told("Measuring the link")
        link = measure_link(team)
    link = link or LOOPBACK
    counter = Counter(corpus, config, model)
    memory = 4 * counter.num_parameters + _state_bytes(model, config)
    forecasts, others = [alone(machine, memory, config.data.batch)], []
    machines = {config.data.batch: machine}
    for batch in _batches(config):
        told(f"Measuring steps of {batch} sequences")
        varied = replace(config, data=replace(config.data, batch=batch))
        steps = measure_again(machine, corpus, varied, _model(corpus, varied), SECONDS)
        machines[batch] = _slowest(team, steps)
    for W in workers:
        told(f"Counting what {W} workers would send")
        for select, codecs in (("rows", get_args(CodecName)), ("everything", ("fp32",))):
            for kind in KINDS:
                for codec in codecs:
                    made = _forecast(counter, machine, link, W, kind, codec, select, memory)
                    forecasts.append(made)
        for kind, varied in _variations(config, tuple(machines)):
            counter_b = Counter(corpus, varied, model)
            for codec in get_args(CodecName):
                machine_b = machines[varied.data.batch]
                made = _forecast(counter_b, machine_b, link, W, kind, codec, "rows", memory)
                others.append(made)
    return Plan(
        machine=machine,
        link=link,
        num_parameters=counter.num_parameters,
        train_tokens=len(corpus.ids("train")),
        forecasts=tuple(forecasts),
        others=tuple(others),
    )


def _batches(config: RunConfig) -> list[int]:
    """Sequences a worker's step that are worth a try besides the given ones."""
    is_default = config.data.batch == DataConfig().batch
    return [batch for batch in BATCHES if is_default and batch != config.data.batch]


def _variations(config: RunConfig, batches: Sequence[int]) -> Iterator[tuple[str, RunConfig]]:
    """Exchanges with settings that are worth a try besides the given ones."""
    may_vary = _turns(config.exchange) == _turns(ExchangeConfig())
    for kind in KINDS:
        for batch in batches:
            data = replace(config.data, batch=batch)
            for turns in TURNS if may_vary and kind == "periodic" else (_turns(config.exchange),):
                if (batch, turns) != (config.data.batch, _turns(config.exchange)):
                    H, F, R, overlap = turns
                    exchange = replace(
                        config.exchange,
                        local_steps=H,
                        fragments=F,
                        row_steps=R,
                        overlap_steps=overlap,
                    )
                    yield kind, replace(config, data=data, exchange=exchange)


def _turns(exchange: ExchangeConfig) -> tuple[int, int, int, int]:
    return exchange.local_steps, exchange.fragments, exchange.row_steps, exchange.overlap_steps


def _slowest(team: Collective, machine: Machine) -> Machine:
    """Of the machines of a team."""
    machines = [Machine(**said) for said in team.all_gather_json(asdict(machine))]
    return max(machines, key=lambda found: found.step)


def _model(corpus: Corpus, config: RunConfig) -> LanguageModel:
    counts_V = torch.from_numpy(corpus.counts_V)
    in_bf16 = config.run.precision == "bf16"
    model = LanguageModel(config.model, config.loss, counts_V, config.run.seed, in_bf16=in_bf16)
    return model.to(find_device(config.run.device))


def _state_bytes(model: LanguageModel, config: RunConfig) -> int:
    """Of the optimisers, once they have taken a step, which changes the model's blocks."""
    rows = row_optimizer(model.tables().values(), config.optim)
    dense = dense_optimizer(model.blocks().values(), config.optim)
    for block in model.blocks().values():
        block.grad = torch.zeros_like(block)
    dense.step()
    states = [*rows.state.values(), *dense.state.values()]
    return sum(t.nbytes for state in states for t in state.values() if isinstance(t, torch.Tensor))


def _forecast(
    counter: Counter,
    machine: Machine,
    link: Link,
    workers: int,
    kind: str,
    codec: str,
    select: str,
    memory: float,
) -> Forecast:
    exchange, batch = counter.config.exchange, counter.config.data.batch
    everything = select == "everything"
    if kind == "sync":
        sent = counter.sync(workers, codec, everything=everything)
        step, hidden = sync_seconds(machine, sent, codec, link, exchange.delay)
    elif kind == "periodic":
        sent = counter.periodic(workers, codec, everything=everything)
        step, hidden = periodic_seconds(machine, sent, codec, link, exchange.overlap_steps)
    else:
        sent = counter.asynchronous(workers, codec, everything=everything)
        step, hidden = async_seconds(machine, sent, codec, link, workers, exchange.servers)
    parameters = 4 * counter.num_parameters
    copies = {"sync": memory, "periodic": memory + parameters, "async": parameters}
    turns = Turns.of(exchange) if kind == "periodic" else Turns(1, 1, 1)
    return Forecast(
        exchange=kind,
        codec=codec,
        select=select,
        workers=workers,
        step_seconds=step,
        tokens_per_second=workers * machine.tokens / step,
        step_bytes=sent.up,
        dense_share=sent.dense_share,
        hidden_share=hidden,
        memory_bytes=copies[kind],
        batch=batch,
        local_steps=turns.local_steps,
        fragments=turns.fragments,
        row_steps=turns.row_steps,
        overlap_steps=exchange.overlap_steps if kind == "periodic" else 0,
        learning=learning(kind, workers, batch, turns.local_steps, turns.row_steps),
    )
