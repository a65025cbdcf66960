"""The plan of a command: for workers on this machine, or for those that torchrun has started."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from thinwire.config import RunConfig
from thinwire.console import console, print_line
from thinwire.cores import num_threads
from thinwire.data.corpus import Corpus
from thinwire.plan.forecast import Link
from thinwire.plan.plan import KINDS, REPLICATED, Plan, make_plan
from thinwire.runs.device import set_up_device
from thinwire.runs.precision import with_precision, with_precision_of_first
from thinwire.training.replicas import require_same_run
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective


def plan_for(
    data: Path,
    config: RunConfig,
    link: Link | None,
    workers: Sequence[int],
    collective: Collective | None = None,
) -> Plan:
    """Make the plan for a data folder; the first worker shows progress on standard error.

    Args:
        data: the data folder.
        config: all settings.
        link: the link between the workers; None: it is measured.
        workers: the numbers of workers to plan for.
        collective: the workers that plan together; None: this process alone.

    Raises:
        UserError: the workers do not have the same data and settings.
    """
    collective = collective or Alone()
    corpus = Corpus.open(data)
    require_same_run(collective, config, corpus)
    device = set_up_device(config)
    first = config if collective.rank else with_precision(config, device)
    config = with_precision_of_first(config, first, collective)
    shown = console.status("") if console.is_terminal and not collective.rank else nullcontext()
    with shown as status:

        def show(sentence: str) -> None:
            if status is not None:
                status.update(Text(sentence))
            elif not collective.rank:
                print_line(sentence)

        return make_plan(corpus, config, link, workers, collective=collective, on_progress=show)


def with_best_exchange(
    data: Path, config: RunConfig, collective: Collective | None = None
) -> RunConfig:
    """Settings with the best exchange for `run.workers` workers on this machine.

    Under torchrun, every worker must call this with its collective. The link between the workers is
    measured, and all workers use the exchange that the first worker finds best among those without
    a server.

    Raises:
        UserError: the workers do not have the same data and settings.
    """
    W = config.run.workers
    if W == 1:
        print_line("Planned: nothing, for one worker has nobody to exchange with")
        return replace(config, exchange=replace(config.exchange, kind="sync"))
    threads = num_threads(config.run.threads, W)
    with_threads = replace(config, run=replace(config.run, threads=threads))
    plan = plan_for(data, with_threads, None, (W,), collective)
    best = plan.best(W, KINDS if collective is None else REPLICATED)
    flags: dict[str, Any] = best.flags
    if collective is not None:
        flags = collective.all_gather_json(flags)[0]
    if collective is None or collective.rank == 0:
        shown = " ".join(f"--{flag} {value}" for flag, value in flags.items())
        print_line(f"Planned: {shown}")
    exchange = {
        name: flags.get(f"exchange.{name}", getattr(config.exchange, name))
        for name in ("local_steps", "fragments", "row_steps", "overlap_steps")
    }
    return replace(
        config,
        data=replace(config.data, batch=flags["data.batch"]),
        exchange=replace(config.exchange, kind=flags["exchange"], codec=flags["codec"], **exchange),
    )
