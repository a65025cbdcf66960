"""The plan: forecasts of all exchanges for one corpus and one set of settings, and the best one.

Which exchange is best also depends on the batch size and on the number of local steps. If these
settings are at their defaults, the plan contains forecasts for a few other values.
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
from thinwire.plan.traffic import TrafficCounter
from thinwire.runs.device import find_device
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective

SECONDS = 2.0
REPLICATED = ("sync", "periodic")
KINDS = (*REPLICATED, "async")
# Among exchanges that learn as fast as the fastest, up to this fraction, the best is the one that
# is closest to a single worker's results: sync before periodic before async, fp32 before int4.
TIE = 0.05
BATCHES = (16, 32, 64)
# Variations of a periodic exchange: local_steps, fragments, row_steps, overlap_steps.
TURNS = ((4, 4, 0, 0), (4, 1, 16, 1), (4, 1, 16, 2), (8, 1, 32, 0))


@dataclass(frozen=True)
class Plan:
    """The forecasts for some numbers of workers, and the measurements on which they are based."""

    machine: Machine
    link: Link
    num_parameters: int
    train_tokens: int
    forecasts: Sequence[Forecast]
    """Forecasts with the given settings; the first is that of a single worker."""
    others: Sequence[Forecast] = ()
    """Forecasts with other batch sizes and local steps."""

    def best(self, workers: int, kinds: Sequence[str] = KINDS) -> Forecast:
        """The best exchange of these kinds with this number of workers."""
        candidates = [f for f in (*self.forecasts, *self.others) if f.workers == workers]
        candidates = [f for f in candidates if f.select == "rows" and f.exchange in kinds]
        fastest = max(f.learnt_per_second for f in candidates)
        return next(f for f in candidates if f.learnt_per_second >= (1.0 - TIE) * fastest)

    def worth(self, forecast: Forecast) -> float:
        """The speedup over a single worker, in time to the same perplexity."""
        return forecast.learnt_per_second / self.forecasts[0].learnt_per_second


def make_plan(
    corpus: Corpus,
    config: RunConfig,
    link: Link | None,
    workers: Sequence[int],
    *,
    collective: Collective | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Plan:
    """Measure this machine, count what each exchange sends, and forecast.

    Args:
        corpus: the data folder.
        config: all settings. The plan varies `exchange.kind` and `codec`, and also `data.batch`,
            `exchange.local_steps`, `fragments` and `row_steps` if they are at their defaults.
        link: the link between the workers. None: measure that of the collective; without a
            collective, loopback.
        workers: numbers of workers to plan for.
        collective: workers that plan together, each on its own machine. All must call this; the
            slowest machine counts. None: this process alone.
        on_progress: called with a sentence about each part of the work.
    """
    collective = collective or Alone()
    on_progress = on_progress or (lambda sentence: None)
    model = _model(corpus, config)
    on_progress("Measuring this machine")
    machine = _slowest(collective, measure(corpus, config, model, SECONDS))
    if link is None and collective.size > 1:
        on_progress("Measuring the link")
        link = measure_link(collective)
    link = link or LOOPBACK
    counter = TrafficCounter(corpus, config, model)
    memory = 4 * counter.num_parameters + _state_bytes(model, config)
    forecasts, others = [alone(machine, memory, config.data.batch)], []
    machines = {config.data.batch: machine}
    for batch in _batches(config):
        on_progress(f"Measuring steps of {batch} sequences")
        varied = replace(config, data=replace(config.data, batch=batch))
        steps = measure_again(machine, corpus, varied, _model(corpus, varied), SECONDS)
        machines[batch] = _slowest(collective, steps)
    for W in workers:
        on_progress(f"Counting what {W} workers would send")
        for select, codecs in (("rows", get_args(CodecName)), ("everything", ("fp32",))):
            for kind in KINDS:
                for codec in codecs:
                    made = _forecast(counter, machine, link, W, kind, codec, select, memory)
                    forecasts.append(made)
        for kind, varied in _variations(config, tuple(machines)):
            counter_b = TrafficCounter(corpus, varied, model)
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
    """Batch sizes to try besides the given one."""
    is_default = config.data.batch == DataConfig().batch
    return [batch for batch in BATCHES if is_default and batch != config.data.batch]


def _variations(config: RunConfig, batches: Sequence[int]) -> Iterator[tuple[str, RunConfig]]:
    """Exchanges with settings to try besides the given ones."""
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


def _slowest(collective: Collective, machine: Machine) -> Machine:
    """The slowest machine of the workers of a collective."""
    machines = [Machine(**found) for found in collective.all_gather_json(asdict(machine))]
    return max(machines, key=lambda machine: machine.step)


def _model(corpus: Corpus, config: RunConfig) -> LanguageModel:
    counts_V = torch.from_numpy(corpus.counts_V)
    in_bf16 = config.run.precision == "bf16"
    model = LanguageModel(config.model, config.loss, counts_V, config.run.seed, in_bf16=in_bf16)
    return model.to(find_device(config.run.device))


def _state_bytes(model: LanguageModel, config: RunConfig) -> int:
    """The bytes of the optimisers' state after a step. The step changes the model's blocks."""
    rows = row_optimizer(model.tables().values(), config.optim)
    dense = dense_optimizer(model.blocks().values(), config.optim)
    for block in model.blocks().values():
        block.grad = torch.zeros_like(block)
    dense.step()
    states = [*rows.state.values(), *dense.state.values()]
    return sum(t.nbytes for state in states for t in state.values() if isinstance(t, torch.Tensor))


def _forecast(
    counter: TrafficCounter,
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
