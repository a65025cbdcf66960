"""What does an asynchronous worker wait for?

Four emulated devices of 0.4 of a core train as in the four bars, beside a server on a fifth. All of
them write down when each message left and came, by the clock that all processes of a machine share;
every step of a worker is then cut at these times, from when its gradients are there to when it can
compute again. Needs root, for the devices.

    python -m benchmarks.questions.round_trip [--seeds N ...] [--quick]

What is measured already is not measured again, but with `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from torch import Tensor

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.cluster import Cluster
from benchmarks.lab.four_bars import (
    ASYNC,
    COMMON,
    DATA,
    QUICK_WORDS,
    RACE_BATCH,
    rate_of,
    seconds_budget,
    start,
)
from benchmarks.lab.race import SHARE, WORKERS
from benchmarks.lab.runs import wait
from benchmarks.record.kept import Kept
from benchmarks.record.write import spread, table, write
from thinwire.cli import app
from thinwire.parameter_server.client import Client
from thinwire.parameter_server.protocol import Kind, read_message
from thinwire.transport.zeromq import ZeroMQConnection, ZeroMQListener

TRAINING_SECONDS, QUICK_SECONDS = 20.0, 10.0
TIMEOUT_SECONDS = 300.0
MODULE, PROCESS = "benchmarks.questions.round_trip", "--as-process"
PARTS = ("coding", "push on its way", "applying it", "answering", "answer on its way", "decoding")


@dataclass(frozen=True)
class Case:
    """A link, with so many sequences a step of each worker."""

    link: str
    batch: int

    @property
    def name(self) -> str:
        """Under which its measurements are kept."""
        return f"{self.link}/{self.batch}"


CASES = (
    Case("300mbit", DATA.batch),
    Case("300mbit", RACE_BATCH),
    Case("1gbit", DATA.batch),
    Case("1gbit", RACE_BATCH),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    parser.add_argument("--quick", action="store_true", help="one case, some seconds, 10 k words")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    arguments = parser.parse_args()
    name = record_name("round-trip", arguments.corpus)
    cases, seeds, seconds = list(CASES), arguments.seeds, TRAINING_SECONDS
    if arguments.quick:
        name, cases, seeds, seconds = "round-trip-quick", [CASES[1]], [1], QUICK_SECONDS
    data = data_folder(arguments, *([f"--vocab-size={QUICK_WORDS}"] if arguments.quick else []))
    kept = Kept(name, again=arguments.again)
    for seed in seeds:
        for case in cases:
            kept.measure(f"{case.name}/{seed}", partial(measure, case, seed, data, seconds))
    body = (
        f"Four devices of {SHARE} of a core and one thread each, settings of the four bars, the "
        "server on a device of its own.\nMilliseconds of a worker's step between its gradients and "
        "the next step's arithmetic: medians of all\nsteps, then of the seeds "
        f"{', '.join(map(str, seeds))}. `alone`: what the link alone needs for the bytes; "
        "`rows ahead`: the wait for the rows\nthat were pulled while the step before computed. How "
        "long a message lies before the server reads it counts\nas its way.\n\n"
        f"{table(row(case, kept.found, seeds) for case in cases)}\n"
        f"Measured at {kept.origins()}.\n"
    )
    write(name, "What an asynchronous worker waits for", body, {"measurements": kept.found})


def row(case: Case, found: dict[str, dict[str, Any]], seeds: Sequence[int]) -> dict[str, str]:
    """A case's medians."""
    runs = [found[f"{case.name}/{seed}"] for seed in seeds]

    def of(name: str) -> float:
        return float(median(run[name] for run in runs))

    bytes_a_millisecond = float(case.link.replace("gbit", "000mbit").removesuffix("mbit")) * 125
    alone = {way: of(f"{way} bytes") / bytes_a_millisecond for way in ("push", "answer")}
    cells = {"link": case.link, "sequences": str(case.batch)}
    cells |= {"step": spread([run["step"] for run in runs], 0)}
    for part in PARTS:
        way = part.split()[0]
        needed = f" ({alone[way]:.0f} alone)" if way in alone else ""
        cells[part] = f"{of(part):.0f}{needed}"
    cells |= {"MB up, down": f"{of('push bytes') / 1e6:.2f}, {of('answer bytes') / 1e6:.2f}"}
    return cells | {"rows ahead": f"{of('rows ahead'):.0f}"}


def measure(case: Case, seed: int, data: Path, seconds: float) -> dict[str, Any]:
    """Train, and cut the steps."""
    folder = Path(tempfile.mkdtemp())
    flags = [*COMMON, "--threads", "1", "--data.batch", str(case.batch)]
    flags += [*seconds_budget(seconds), "--checkpoint.every_seconds", "1e9"]
    flags += ASYNC.settings(case.link)
    try:
        with Cluster(WORKERS + 1, rate_of(case.link), SHARE) as cluster:
            command = partial(process, folder)
            processes = start(ASYNC, cluster, data, folder, flags, seed, command)
            wait(processes, folder, TIMEOUT_SECONDS, num_runs=1)
        traces = [trace(file) for file in folder.glob("*.trace")]
    finally:
        shutil.rmtree(folder)
    [served] = [one for one in traces if one[0]["event"] == "serve"]
    worked = [one for one in traces if one is not served]
    assert len(worked) == WORKERS
    steps = [step for one in worked for step in steady_steps(one, served)]
    return {name: median(step[name] for step in steps) for name in steps[0]}


def trace(file: Path) -> list[dict[str, Any]]:
    """What a process has written down; the last line may be half a one."""
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def steady_steps(
    worked: Sequence[dict[str, Any]], served: Sequence[dict[str, Any]]
) -> Iterator[dict[str, float]]:
    """A worker's steps in parts, milliseconds; without the first fifth, as in `steady`."""
    at = {(e["event"], e["kind"], e["who"], e["number"]): e for e in served if "kind" in e}
    starts = [place for place, event in enumerate(worked) if event["event"] == "push"]
    for begin, end in list(pairwise(starts))[len(starts) // 5 :]:
        events = worked[begin:end]
        sent = [e for e in events if e["event"] == "sent"]
        pushed, asked = (next(e for e in sent if e["kind"] == k) for k in (Kind.PUSH, Kind.PULL))
        push, pull, rows = (
            (event, kind, said["who"], said["number"])
            for event, kind, said in (
                ("got", Kind.PUSH, pushed),
                ("got", Kind.PULL, asked),
                ("sent", Kind.ROWS, asked),
            )
        )
        came = [e for e in events if e["event"] == "got" and e["number"] == asked["number"]]
        fetches = [e for e in events if e["event"] in ("fetch", "fetched")]
        # At the end of a run messages are missing.
        if not came or len(fetches) < 2 or any(key not in at for key in (push, pull, rows)):
            continue
        fetch, fetched = fetches[:2]
        times = [
            *(events[0]["time"], pushed["time"], at[push]["time"], at[pull]["time"]),
            *(at[rows]["time"], came[0]["time"], fetched["time"]),
        ]
        parts = {p: 1000 * (b - a) for p, (a, b) in zip(PARTS, pairwise(times), strict=True)}
        yield {
            "step": 1000 * (worked[end]["time"] - events[0]["time"]),
            **parts,
            "rows ahead": 1000 * (asked["time"] - fetch["time"]),
            "push bytes": pushed["bytes"],
            "answer bytes": at[rows]["bytes"],
        }


# In a process of the run


def process(folder: Path, *arguments: object) -> list[str]:
    """A command line of `thinwire` that leaves its trace in the folder."""
    return [sys.executable, "-m", MODULE, PROCESS, str(folder), *map(str, arguments)]


def take_part(folder: Path, arguments: Sequence[str]) -> None:
    """`thinwire` with these arguments, which writes down its messages."""
    file = (folder / f"{os.getpid()}.trace").open("w", buffering=1)

    def note(event: str, message: Tensor | None = None) -> None:
        line: dict[str, Any] = {"time": monotonic(), "event": event}
        if message is not None:
            kind, frame = read_message(message)
            who, number = (*frame.numbers[:2], 0, 0)[:2]
            line |= {"kind": kind, "who": who, "number": number, "bytes": len(message)}
        file.write(json.dumps(line) + "\n")

    def noted(
        kind: type,
        name: str,
        before: Callable[[tuple[Any, ...]], object] = lambda arguments: None,
        after: Callable[[Any], object] = lambda found: None,
    ) -> None:
        function: Callable[..., Any] = getattr(kind, name)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            before(arguments)
            found = function(*arguments)
            after(found)
            return found

        setattr(kind, name, call)

    def got(found: Tensor | tuple[bytes, Tensor] | None) -> None:
        if found is not None:
            note("got", found[1] if isinstance(found, tuple) else found)

    note(arguments[0])
    for socket in (ZeroMQConnection, ZeroMQListener):
        noted(socket, "send", lambda arguments: note("sent", arguments[-1]))
        noted(socket, "receive", after=got)
    noted(Client, "push", lambda _: note("push"))
    noted(Client, "fetch", lambda _: note("fetch"), lambda _: note("fetched"))
    sys.argv = ["thinwire", *arguments]
    app.main()


if __name__ == "__main__":
    if sys.argv[1:2] == [PROCESS]:
        take_part(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
