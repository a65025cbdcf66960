"""A plan for the workers of a command: on this machine, or those that torchrun has started."""

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
from thinwire.training.replicas import introduce
from thinwire.transport.alone import Alone
from thinwire.transport.collective import Collective


def planned(
    data: Path,
    config: RunConfig,
    link: Link | None,
    workers: Sequence[int],
    team: Collective | None = None,
) -> Plan:
    """What `make_plan` finds for a data folder, and signs of life from the first of the team.

    Raises:
        UserError: the workers of the team have not the same data and settings.
    """
    team = team or Alone()
    corpus = Corpus.open(data)
    introduce(team, config, corpus)
    device = set_up_device(config)
    first = config if team.rank else with_precision(config, device)
    config = with_precision_of_first(config, first, team)
    shown = console.status("") if console.is_terminal and not team.rank else nullcontext()
    with shown as status:

        def told(sentence: str) -> None:
            if status is not None:
                status.update(Text(sentence))
            elif not team.rank:
                print_line(sentence)

        return make_plan(corpus, config, link, workers, team=team, told=told)


def chosen(data: Path, config: RunConfig, team: Collective | None = None) -> RunConfig:
    """Settings with the best exchange for `run.workers` workers on this machine.

    Under torchrun, every worker must call this with its team: the link between them is measured,
    and all take what the first worker finds best among the exchanges without a server.

    Raises:
        UserError: the workers of the team have not the same data and settings.
    """
    W = config.run.workers
    if W == 1:
        print_line("Planned: nothing, for one worker has nobody to exchange with")
        return replace(config, exchange=replace(config.exchange, kind="sync"))
    threads = num_threads(config.run.threads, W)
    with_threads = replace(config, run=replace(config.run, threads=threads))
    plan = planned(data, with_threads, None, (W,), team)
    best = plan.best(W, KINDS if team is None else REPLICATED)
    flags: dict[str, Any] = best.flags
    if team is not None:
        flags = team.all_gather_json(flags)[0]
    if team is None or team.rank == 0:
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
