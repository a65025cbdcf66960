"""`thinwire plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from thinwire.cli.flags import AsJson
from thinwire.cli.train import Settings
from thinwire.config import RunConfig, RunSettings

if TYPE_CHECKING:
    from thinwire.plan.plan import Plan

DEFAULT_LINK = "1gbit"


def plan(
    data: Path,
    /,
    *,
    link: Annotated[str | None, Parameter(metavar="RATE")] = None,
    config: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    as_json: AsJson = False,
    settings: Settings = RunConfig(),  # noqa: B008 (frozen)
) -> None:
    """Forecast bytes and speed of each exchange, here.

    Nothing is trained. It measures this machine for some seconds, counts in the corpus what the
    workers would send, and prints one row per exchange. --workers N plans for N workers; without it
    the plan is for 2, 4 and 8. Started by torchrun on several machines, it measures those machines
    and the link between them. It accepts every setting of `thinwire train`; the settings below are
    those that change the forecast.

    Parameters
    ----------
    data
        A data folder, made by `thinwire prepare`.
    link
        The rate of each worker's link, for example 20mbit or 1gbit. Default: 1gbit, or, under
        torchrun, the rate that is measured.
    config
        A TOML file with settings, in the sections named below. Flags override the file.
    as_json
        Print JSON and nothing else.

    Examples
    --------
    thinwire plan data --workers 4 --link 100mbit
    thinwire plan data --config run.toml --json
    """
    from thinwire.launch.auto import plan_for
    from thinwire.launch.start import world_size
    from thinwire.plan.forecast import Link
    from thinwire.plan.machine import parse_rate

    given, N = Link(parse_rate(link)) if link else None, settings.run.workers
    if world_size() > 1:
        from thinwire.launch.rendezvous import TorchrunRendezvous

        rendezvous = TorchrunRendezvous(settings)
        workers: tuple[int, ...] = (N if N > 1 else world_size(),)
        with rendezvous.collective("plan") as collective:
            found = plan_for(data, rendezvous.config, given, workers, collective)
        if collective.rank:
            return
    else:
        workers = (N,) if N > 1 else (2, 4, 8)
        found = plan_for(data, settings, given or Link(parse_rate(DEFAULT_LINK)), workers)
    if as_json:
        print(json.dumps(_as_json(found, workers)))
    else:
        _print(found, workers, settings.run, measured=world_size() > 1 and given is None)


def _print(found: Plan, workers: tuple[int, ...], run: RunSettings, *, measured: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from thinwire.plan.plan import TIE

    out = Console(highlight=False)
    table = Table(
        title=f"{found.num_parameters / 1e6:.1f} M parameters, {found.train_tokens / 1e6:.1f} M "
        f"training tokens, {found.machine.tokens:,.0f} tokens a step of a worker, links of "
        f"{8 * found.link.rate / 1e6:,.0f} Mbit/s{' (measured)' if measured else ''}",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    heads = ("exchange", "tokens/s", "worth", "MB/step", "of all", "hidden", "MB", "h:mm:ss")
    for head in heads:
        table.add_column(head, justify="left" if head == "exchange" else "right", no_wrap=True)
    best = {W: found.best(W) for W in workers}
    budgets = [run.tokens, run.epochs and run.epochs * found.train_tokens]
    num_tokens = min((tokens for tokens in budgets if tokens), default=found.train_tokens)
    workers_above = 1
    for forecast in found.forecasts:
        if forecast.workers != workers_above:
            workers_above = forecast.workers
            table.add_section()
            table.add_row(f"{workers_above} workers", style="bold")
        table.add_row(
            "one worker" if forecast.workers == 1 else forecast.name,
            f"{forecast.tokens_per_second:,.0f}",
            f"{found.worth(forecast):.1f}",
            f"{forecast.step_bytes / 1e6:,.2f}",
            f"{forecast.dense_share:.1%}" if forecast.dense_share else "",
            f"{forecast.hidden_share:.0%}" if forecast.workers > 1 else "",
            f"{forecast.memory_bytes / 1e6:,.0f}",
            _clock(num_tokens / forecast.tokens_per_second),
            style="bold green" if forecast is best.get(forecast.workers) else None,
        )
    with out.capture() as shown:  # rich itself would end the process where nobody reads
        out.print(table)
        for column, meaning in {
            "... all": "with --select everything",
            "worth": "how many times sooner than one worker it reaches a perplexity",
            "MB/step": "what a worker sends in a step",
            "of all": "bytes over those of all parameters in fp32, sent as often; async: both ways",
            "hidden": "the part of the wire's time in which it computes",
            "MB": "of memory: its parameters, optimiser and copies",
            "h:mm:ss": f"to train on {num_tokens / 1e6:,.1f} M tokens",
        }.items():
            out.print(f"{column:8} {meaning}")
        out.print(
            "Each worker counts as if on a machine of its own: those that share one are slower."
        )
        for W, forecast in best.items():
            flags = " ".join(f"--{flag} {value}" for flag, value in forecast.flags.items())
            rate, worth = (
                f"{forecast.tokens_per_second:,.0f} tokens/s",
                f"{found.worth(forecast):.1f}",
            )
            out.print(f"{W} workers: {flags}: {rate}, worth {worth} (forecast)")
        out.print(
            "Batches and local steps were varied where they stand at their defaults. Among "
            f"exchanges within {TIE:.0%} of the best, the one closest to single-worker results "
            "is chosen."
        )
    print(shown.get(), end="")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,}:{minutes % 60:02d}:{rest:02d}"


def _as_json(found: Plan, workers: tuple[int, ...]) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "parameters": found.num_parameters,
        "train_tokens": found.train_tokens,
        "machine": asdict(found.machine),
        "link_bytes_per_second": found.link.rate,
        "forecasts": [asdict(forecast) for forecast in found.forecasts],
        "best": {str(W): asdict(found.best(W)) for W in workers},
    }
