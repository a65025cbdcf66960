"""`thinwire plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from thinwire.cli.train import Settings
from thinwire.config import RunConfig

if TYPE_CHECKING:
    from thinwire.plan.plan import Plan


def plan(
    data: Path,
    /,
    *,
    link: str = "1gbit",
    config: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    settings: Settings = RunConfig(),  # noqa: B008 (frozen)
) -> None:
    """Forecast what each exchange would send and take here.

    Takes the settings of `thinwire train`; --workers N plans for N workers, without it for 2, 4
    and 8. Measures this machine for a few seconds and counts in the corpus itself.

    Parameters
    ----------
    data
        A data folder, made by `thinwire prepare`.
    link
        The rate of each worker's link: 20mbit, 1gbit, ...
    config
        Settings from a TOML file; flags go before it.
    as_json
        Print JSON and nothing else.
    """
    from thinwire.console import console
    from thinwire.data.corpus import Corpus
    from thinwire.plan.forecast import Link
    from thinwire.plan.machine import parse_rate
    from thinwire.plan.plan import make_plan
    from thinwire.train.loop import set_up_device

    rate = parse_rate(link)
    corpus = Corpus.open(data)
    set_up_device(settings)
    N = settings.run.workers
    workers = (N,) if N > 1 else (2, 4, 8)
    with console.status("") as status:
        found = make_plan(corpus, settings, Link(rate), workers, told=status.update)
    if as_json:
        print(json.dumps(_as_json(found, workers)))
    else:
        _print(found, workers, link)


def _print(found: Plan, workers: tuple[int, ...], link: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False)
    table = Table(
        title=f"{found.num_parameters / 1e6:.1f} M parameters, {found.train_tokens / 1e6:.1f} M "
        f"training tokens, {found.machine.tokens:,.0f} tokens a step of a worker, links of {link}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    heads = ("exchange", "ms/step", "tokens/s", "MB/step", "dense", "hidden", "MB", "hours")
    for head in heads:
        table.add_column(head, justify="left" if head == "exchange" else "right", no_wrap=True)
    best = {W: found.best(W) for W in workers}
    workers_above = 1
    for forecast in found.forecasts:
        if forecast.workers != workers_above:
            workers_above = forecast.workers
            table.add_section()
            table.add_row(f"{workers_above} workers", style="bold")
        hours = found.train_tokens / forecast.tokens_per_second / 3600
        table.add_row(
            "one worker" if forecast.workers == 1 else forecast.name,
            f"{1e3 * forecast.step_seconds:,.0f}",
            f"{forecast.tokens_per_second:,.0f}",
            f"{forecast.step_bytes / 1e6:,.2f}",
            f"{forecast.dense_share:.1%}" if forecast.dense_share else "",
            f"{forecast.hidden_share:.0%}" if forecast.workers > 1 else "",
            f"{forecast.memory_bytes / 1e6:,.0f}",
            f"{hours:,.2f}",
            style="bold green" if forecast is best.get(forecast.workers) else None,
        )
    out.print(table)
    out.print(
        "MB that a worker sends in a step; dense: their part of what all parameters would be; the "
        "part of the wire's time that is hidden; MB of memory of a worker; hours an epoch. Each "
        "worker has a machine of its own: those that share one slow each other down."
    )
    for W, forecast in best.items():
        flags = f"--exchange {forecast.exchange} --codec {forecast.codec}"
        out.print(f"{W} workers: {flags}, {forecast.tokens_per_second:,.0f} tokens/s (forecast)")
    out.print(
        "The one named for so many workers is, of those within 15% of the fastest, the one that "
        "changes the numbers least."
    )


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
