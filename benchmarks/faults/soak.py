"""Does a run survive whatever happens to it? Faults at random, against every process of a run.

One seed gives a schedule (`schedule.py`): kill -9, SIGSTOP and later SIGCONT, SIGTERM, a cut and a
slow link, a full disk, a clock that jumps, against workers, servers and leads; in synchronous and
periodic runs under torchrun (two machines, which restarts them), asynchronous runs with one and
with two servers (on machines of their own, with a scheduler that starts again what ends), and an
asynchronous run of two servers that `train --workers` looks after. Budgets are in tokens, and
faults strike at parts of the budget, so a slow machine changes only the time.

    python -m benchmarks.faults.soak [--minutes 60] [--faults 18] [--tokens 300000] [--seeds 3]
    python -m benchmarks.faults.soak --exchange async --seed 2      # one run again

A run must end by itself with status 0 and its budget spent; every loss, evaluation and number saved
is finite; the newest step loads, and is evaluated to what the run says; a run that is started again
continues from the newest step there was, which is two saves back at most where every save went
well; an asynchronous fault loses a step of a worker at most, and what a server says it has dropped;
no traceback is printed; and its final perplexity is, in
the median over the seeds, within 1% of that of the undisturbed run of its seed. What fails is
printed with its seed, and the exit status is then 1. After `--minutes` no fault strikes and no run
starts any more; the last one still ends by itself. What was played to its end and found good is not
played again, but with `--again`. Links, disks and clocks need root, clocks a C compiler too;
without root only `supervised` is played. Not struck: torchrun itself, and power.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.corpora import fetched, prepared
from benchmarks.faults.schedule import KINDS, TIMEOUT_SECONDS, Fault, schedule
from benchmarks.faults.stage import Stage
from benchmarks.lab.cluster import cannot
from benchmarks.record.kept import Kept
from benchmarks.record.write import spread, table, write
from thinwire.data.corpus import Corpus
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.evaluation import evaluate
from thinwire.runs.folder import RunFolder

EVALUATED_TOKENS = 10_000
SAVES = 20  # of a run, at equal distances in tokens
WITHIN = 1.01  # of the undisturbed perplexity
HANG_SECONDS = 180.0  # without a new token
LOOK_SECONDS = 0.05
SMALL = {
    "run.threads": 1,
    "model.width": 32,
    "data.batch": 8,
    "data.length": 35,
    "loss.samples": 200,
}
STEP_TOKENS = SMALL["data.batch"] * SMALL["data.length"]  # of one worker
NOT_SAVED = ("nor saved", "disk is full")
EXCHANGES: dict[str, dict[str, Any]] = {
    "sync": {"exchange": "sync"},
    "periodic": {"exchange": "periodic", "exchange.local_steps": 4},
    "async": {"exchange": "async"},
    "async2": {"exchange": "async"},
    "supervised": {"exchange": "async"},
}


class Failed(Exception):
    """What must not be."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="strike and start no longer")
    parser.add_argument("--faults", type=int, default=18, help="in a run; under torchrun half")
    parser.add_argument("--tokens", type=int, default=300_000, help="of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each exchange")
    parser.add_argument("--exchange", nargs="+", choices=EXCHANGES, default=list(EXCHANGES))
    parser.add_argument(
        "--seed", type=int, help="strike the runs of this seed again, and no others"
    )
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    parser.add_argument("--keep", action="store_true", help="keep the folders of what failed")
    arguments = parser.parse_args()
    if cannot():
        print(f"only `supervised` is played: {cannot()}", flush=True)
        arguments.exchange = ["supervised"]
    elif not shutil.which("cc"):
        print("clocks do not jump in this: there is no C compiler", flush=True)
    deadline = time.monotonic() + 60 * arguments.minutes
    if arguments.seed is None:
        runs = campaign(arguments, deadline)
    else:
        runs = [played(e, arguments.seed, True, arguments, deadline) for e in arguments.exchange]
        print("\n".join(map(line, runs)), flush=True)
    failures = [failure for run in runs for failure in run["failed"]]
    for exchange, ratios in compared(runs).items():
        if median(ratios) > WITHIN:
            failures.append(f"{exchange}: perplexity {median(ratios):.4f} of the undisturbed")
    for failure in failures:
        print(f"FAILED: {failure}", flush=True)
    print(f"{sum(len(run['struck']) for run in runs)} faults, {len(failures)} failed", flush=True)
    return bool(failures)


def campaign(arguments: argparse.Namespace, deadline: float) -> list[dict[str, Any]]:
    """All runs that there is time for, and the record of them."""
    kept = Kept("soak", again=arguments.again)
    for seed in range(1, 1 + arguments.seeds):
        for exchange in arguments.exchange:
            for is_struck in (False, True):
                key = f"{exchange} {seed}{' struck' if is_struck else ''}"
                if not is_good(kept.found.get(key), exchange, is_struck, arguments):
                    if time.monotonic() >= deadline:
                        continue
                    kept.found.pop(key, None)
                measure = partial(played, exchange, seed, is_struck, arguments, deadline)
                kept.measure(key, measure)
                print(line(kept.found[key]), flush=True)
    report(kept, arguments)
    return list(kept.found.values())


def num_faults(exchange: str, arguments: argparse.Namespace) -> int:
    """In a run. Under torchrun each costs all workers a start."""
    return int(arguments.faults) // (2 if exchange in ("sync", "periodic") else 1)


def is_good(
    run: Mapping[str, Any] | None, exchange: str, is_struck: bool, arguments: argparse.Namespace
) -> bool:
    """Whether a run of the record is what would be played now."""
    if run is None or run["failed"] or run["cut"]:
        return False
    planned = num_faults(exchange, arguments) if is_struck else 0
    return bool(run["budget"] == arguments.tokens and run["planned"] == planned)


def shakespeare() -> Path:
    """The plays, which a command fetches, as a data folder."""
    return prepared("soak", fetched("shakespeare"), "--vocab-size=5000", "--valid=0.03")


def played(
    exchange: str, seed: int, is_struck: bool, arguments: argparse.Namespace, deadline: float
) -> dict[str, Any]:
    """One run, and what was wrong with it."""
    data, faults = shakespeare(), list[Fault]()
    if is_struck:
        planned = num_faults(exchange, arguments)
        faults = schedule(seed, exchange, planned, in_cluster=not cannot())
    settings: dict[str, Any] = {
        **EXCHANGES[exchange],
        **SMALL,
        "seed": seed,
        "tokens": arguments.tokens,
        "exchange.timeout_seconds": TIMEOUT_SECONDS,
        "eval.tokens": EVALUATED_TOKENS,
        "eval.every_tokens": arguments.tokens // 4,
        "checkpoint.every_tokens": arguments.tokens // SAVES,
        "metrics.every_seconds": 0.2,
    }
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    folder = Path(tempfile.mkdtemp(prefix=f"soak-{exchange}-{seed}-"))
    watched = Watched(folder / "disk" / "run", arguments.tokens)
    run: dict[str, Any] = {
        "exchange": exchange,
        "seed": seed,
        "budget": arguments.tokens,
        "planned": len(faults),
        "cut": False,
    }
    began, failed = time.monotonic(), list[str]()
    with Stage(exchange, data, folder, flags) as stage:
        try:
            struck: list[str] = []
            run["struck"] = struck
            run["cut"] = play(stage, watched, faults, struck, deadline)
            failed += stage.leave()
            run |= watched.lost | judge(stage.run, data, watched)
            failed += broken_promises(run, folder)
        except Failed as error:
            failed.append(str(error))
        run["statuses"] = {m.name: dict(Counter(m.statuses)) for m in stage.members if m.statuses}
        failed += watched.failed + tracebacks(folder)
    run |= watched.lost | {"seconds": round(time.monotonic() - began, 1)}
    run["failed"] = [f"--exchange {exchange} --seed {seed}: {failure}" for failure in failed]
    if not (failed and arguments.keep):
        shutil.rmtree(folder)
    return run


class Watched:
    """What can be seen of a run while it runs: its metrics, and the steps that it has saved."""

    def __init__(self, run: Path, num_tokens: int) -> None:
        self.run, self.num_tokens = run, num_tokens
        self.tokens = 0
        self.failed: list[str] = []
        self.lost: dict[str, Any] = {"resumes": 0, "tokens_redone": 0, "most_redone": 0}
        self._read, self._newest = 0, -1

    def look(self) -> bool:
        """Take in what is new; whether there was anything."""
        file = self.run / "metrics.jsonl"
        if not file.exists():
            return False
        with file.open("rb") as opened:
            opened.seek(self._read)
            new = opened.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._read += len(complete)
        for text in complete.splitlines():
            try:
                self._take(json.loads(text))
            except json.JSONDecodeError:  # cut short by a crash
                continue
        steps = [p.name[5:] for p in self.run.glob("step-*")]
        self._newest = max([self._newest, *(int(s) for s in steps if s.isdigit())])
        return bool(complete)

    def _take(self, found: dict[str, Any]) -> None:
        if found["event"] == "resume":
            redone = max(0, self.tokens - found["tokens"])
            self.lost["resumes"] += 1
            self.lost["tokens_redone"] += redone
            self.lost["most_redone"] = max(self.lost["most_redone"], redone)
            if found["step"] < self._newest:
                self.failed.append(
                    f"resumed from step {found['step']}, and step {self._newest} was saved"
                )
            self._newest = found["step"]
        for name in ("loss", "ppl"):
            if name in found and not (found[name] is not None and isfinite(found[name])):
                self.failed.append(f"{name} is {found[name]} at step {found['step']}")
        self.tokens = found.get("tokens", self.tokens)
        self.last = found


def play(
    stage: Stage, watched: Watched, faults: Sequence[Fault], struck: list[str], deadline: float
) -> bool:
    """Strike until no fault is left, and wait for the end; whether the time was over before."""
    left, before, cut = list(faults), 0.0, False
    moved = time.monotonic()
    while not stage.over:
        stage.poll(again=not is_ended(watched))
        now = time.monotonic()
        if watched.look():
            moved = now
        elif now - moved > HANG_SECONDS:
            raise Failed(f"nothing has moved for {HANG_SECONDS:.0f} s after {struck[-3:]}")
        if left and now > deadline:
            left.clear()
            stage.calm()
            cut = True
        if left and not is_ended(watched):
            fault = left[0]
            due = watched.tokens / watched.num_tokens >= fault.at
            if struck and fault.soon is not None:
                due = now - before >= fault.soon
            if due and stage.strike(fault):
                struck.append(str(left.pop(0)))
                before = now
        time.sleep(LOOK_SECONDS)
    watched.look()
    return cut


def is_ended(watched: Watched) -> bool:
    """Whether the run has written its last line, so that only torchrun is left."""
    last = getattr(watched, "last", {})
    return last.get("event") == "end" and last["tokens"] >= watched.num_tokens


def judge(run: Path, data: Path, watched: Watched) -> dict[str, Any]:
    """What the run has come to.

    Raises:
        Failed: it is not what was promised.
    """
    from thinwire.runs.metrics import read_metrics

    lines = read_metrics(run)
    if not lines or lines[-1]["event"] != "end" or lines[-1]["tokens"] < watched.num_tokens:
        raise Failed(f"the last line is {lines[-1:]}")
    valid = [found for found in lines if found["event"] == "valid"]
    if not valid or valid[-1]["step"] != lines[-1]["step"]:
        raise Failed(f"the last evaluation is {valid[-1:]}, and the end {lines[-1]}")
    folder, checkpoints = RunFolder.open(run), Checkpoints(run)
    saved = checkpoints.load()
    if saved.step != lines[-1]["step"]:
        raise Failed(f"step {saved.step} is the newest, and the run ended at {lines[-1]['step']}")
    for stem in ("model", "optimizer"):
        for name, tensor in saved.open(stem).items():
            if not bool(torch.isfinite(tensor).all()):
                raise Failed(f"{stem} {name} is not finite")
    ids, ppl = Corpus.open(data).ids("valid"), valid[-1]["ppl"]
    found = evaluate(
        folder.load_model(saved),
        ids,
        eos_id=folder.eos_id,
        unk_id=folder.unk_id,
        data=folder.config.data,
        max_tokens=EVALUATED_TOKENS,
    )
    if abs(found.ppl / ppl - 1) > 1e-3:
        raise Failed(f"the run says perplexity {ppl}, and what it saved has {found.ppl}")
    return {
        "ppl": ppl,
        "tokens": lines[-1]["tokens"],
        "lost_tokens": saved.state["lost_tokens"],
        "dropped_pushes": lines[-1].get("dropped_pushes", 0),
        "tokens_read": round(saved.state["epochs"] * len(Corpus.open(data).ids("train"))),
    }


def broken_promises(run: Mapping[str, Any], folder: Path) -> list[str]:
    """What a run lost beyond what docs/checkpoints.md says."""
    broken = []
    logs = "".join(log.read_text(errors="replace") for log in folder.glob("*.log"))
    interval = run["budget"] // SAVES
    if run["most_redone"] > 2 * interval and not any(s in logs for s in NOT_SAVED):
        broken.append(f"{run['most_redone']} tokens were redone at once: a save every {interval}")
    # Text that was read, and taught nothing. Epochs are rounded to whole steps.
    unused = run["tokens_read"] - run["tokens"]
    steps = 2 + run["dropped_pushes"] + len(run["struck"])
    if unused > steps * STEP_TOKENS:
        broken.append(f"{unused} tokens were read in vain: more than {steps} steps")
    return broken


def tracebacks(folder: Path) -> list[str]:
    """The last lines of tracebacks of thinwire's own in the logs; torchrun prints its own."""
    found = []
    for log in sorted(folder.glob("*.log")):
        for part in log.read_text(errors="replace").split("Traceback (most recent call last)")[1:]:
            lines = part.splitlines()
            if "/thinwire/" in part[:4000] and "torch/distributed/run.py" not in part[:1000]:
                end = next((x for x in lines[1:] if x and not x.startswith((" ", "╭", "│"))), "")
                found.append(f"{log.name} has a traceback: {end[:200]}")
    return found


def compared(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Of every exchange: for each seed the perplexity with faults over that without."""
    found = {(r["exchange"], r["seed"], bool(r["planned"])): r["ppl"] for r in runs if "ppl" in r}
    ratios: dict[str, list[float]] = {}
    for exchange, seed, is_struck in found:
        if is_struck and (calm := found.get((exchange, seed, False))):
            ratios.setdefault(exchange, []).append(found[exchange, seed, True] / calm)
    return ratios


def line(run: Mapping[str, Any]) -> str:
    """What is printed of a run."""
    what = f"{len(run['struck'])} of {run['planned']} faults" if run["planned"] else "undisturbed"
    ppl = f"{run['ppl']:.3f}" if "ppl" in run else "none"
    return (
        f"{run['exchange']}, seed {run['seed']}, {what}: perplexity {ppl}, {run['seconds']:.0f} s, "
        f"{run['resumes']} resumes, {run['tokens_redone']:,} tokens redone, "
        f"{run.get('lost_tokens', 0):,} lost with a server and made up for, "
        f"{run.get('dropped_pushes', 0)} pushes dropped, statuses {run['statuses']}"
        + "".join(f"\n  {fault}" for fault in run["struck"])
        + "".join(f"\n  FAILED: {failure}" for failure in run["failed"])
    )


def report(kept: Kept, arguments: argparse.Namespace) -> None:
    """The record."""
    rows, ratios = [], compared(kept.found.values())
    for exchange in EXCHANGES:
        found = [r for r in kept.found.values() if r["exchange"] == exchange and r["planned"]]
        if not found:
            continue
        kinds = Counter(s.split(": ")[1].split()[0] for r in found for s in r["struck"])
        of_calm = spread(ratios[exchange], 4) if exchange in ratios else ""
        rows.append(
            {
                "exchange": exchange,
                "runs": len(found),
                "faults": sum(kinds.values()),
                **{kind: kinds[kind] for kind in KINDS},
                "resumes": sum(r["resumes"] for r in found),
                "tokens redone": f"{sum(r['tokens_redone'] for r in found):,}",
                "most at once": f"{max(r['most_redone'] for r in found):,}",
                "pushes dropped": sum(r.get("dropped_pushes", 0) for r in found),
                "ppl, of the undisturbed": of_calm,
                "minutes": f"{sum(r['seconds'] for r in found) / 60:.0f}",
                "failed": sum(len(r["failed"]) for r in found),
            }
        )
    if not rows:
        return
    body = (
        f"Two workers (three where one command looks after them), vocabulary 5 k, LSTM of width "
        f"{SMALL['model.width']}, {arguments.tokens:,} tokens and {SAVES} saves a run, a timeout "
        f"of {TIMEOUT_SECONDS:.0f} s. Perplexity is compared with the undisturbed run of the same "
        f"seed: the median, the least and the largest.\n\n{table(rows)}\n"
        f"Measured at {kept.origins()}."
    )
    write("soak", "Soak", body, {"measurements": kept.found})


if __name__ == "__main__":
    sys.exit(main())
