"""What do faults cost an asynchronous run? Workers and servers are killed and stopped at random.

Three runs of four workers on one machine, of the same tokens: undisturbed; with 50 kill -9 and 20
SIGSTOPs of workers (a stopped one is let go on after a while, whether it was replaced or not); with
ten kill -9 of the server. Every run has to end by itself. Linux only.

    python benchmarks/faults.py [--quick]

What is measured already is not measured again, but with `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from lab.race import Kept
from record import novels, table, write

WORKERS = 4
TOKENS = 4_000_000
KILLS, STOPS, SERVER_KILLS = 50, 20, 10
STOPPED_SECONDS = 8.0
TIMEOUT_SECONDS = 5.0
SAVE_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens and faults")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    arguments = parser.parse_args()
    part = 0.1 if arguments.quick else 1.0
    data = novels("--vocab-size=10000")
    plans: dict[str, list[str]] = {
        "undisturbed": [],
        "workers": ["kill worker"] * int(KILLS * part) + ["stop worker"] * int(STOPS * part),
        "server": ["kill server"] * int(SERVER_KILLS * part),
    }
    file = "faults-quick" if arguments.quick else "faults"
    kept, seconds = Kept(file, again=arguments.again), 0.0
    for name, faults in plans.items():
        kept.measure(name, partial(measure, data, int(TOKENS * part), faults, seconds))
        # Faults are spread over what the undisturbed run took, which the others also take.
        seconds = seconds or kept.found[name]["wall_seconds"]
    base = kept.found["undisturbed"]
    rows = [
        {
            "faults": name,
            "kill -9 of workers": run["done"].count("kill worker"),
            "SIGSTOP of workers": run["done"].count("stop worker"),
            "kill -9 of the server": run["done"].count("kill server"),
            "exit status": run["status"],
            "tokens": f"{run['tokens']:,}",
            "validation ppl": f"{run['ppl']:.2f}",
            "of the undisturbed": f"{run['ppl'] / base['ppl']:.4f}",
            "wall seconds": f"{run['wall_seconds']:.0f}",
            "most seconds lost at once": f"{run['lost_seconds']:.1f}",
        }
        for name, run in kept.found.items()
    ]
    body = (
        f"Four asynchronous workers on one machine, vocabulary 10 k, LSTM of width 128; a save "
        f"every {SAVE_SECONDS:.0f} s.\n\n{table(rows)}\nMeasured at {kept.origins()}.\n"
    )
    write(file, "Faults", body, {"measurements": kept.found, "seed": 1})


def measure(data: Path, tokens: int, faults: list[str], seconds: float) -> dict[str, Any]:
    """One run, with these faults in random order at random moments of the first `seconds`."""
    from thinwire.runs.metrics import read_metrics

    folder = Path(tempfile.mkdtemp())
    rng = random.Random(1)
    rng.shuffle(faults)
    moments = sorted(rng.uniform(0.05, 0.6) * seconds for _ in faults)
    settings = {
        "workers": WORKERS,
        "exchange": "async",
        "tokens": tokens,
        "threads": 1,
        "model.width": 128,
        "data.batch": 8,
        "exchange.timeout_seconds": TIMEOUT_SECONDS,
        "eval.every_seconds": 1e9,
        "eval.tokens": 0,
        "checkpoint.every_seconds": SAVE_SECONDS,
        "metrics.every_seconds": 1.0,
    }
    command = [sys.executable, "-m", "thinwire", "train", str(data), "--out", str(folder / "run")]
    command += [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    log = (folder / "log").open("wb")
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=log, stderr=log)
    stopped: list[tuple[float, int]] = []
    done = []
    for moment, fault in zip(moments, faults, strict=True):
        while time.monotonic() - began < moment and process.poll() is None:
            stopped = wake(stopped)
            time.sleep(0.02)
        if process.poll() is not None:
            break
        what, role = fault.split()
        while not (victims := children(process.pid, role)) and process.poll() is None:
            time.sleep(0.1)  # it is being replaced
        if not victims:
            break
        victim = rng.choice(victims)
        strike(victim, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        done.append(fault)
        if what == "stop":
            stopped.append((time.monotonic() + STOPPED_SECONDS, victim))
    while process.poll() is None:
        stopped = wake(stopped)
        time.sleep(0.1)
    lines, lost_seconds = read_metrics(folder / "run"), most_lost(folder / "run")
    text = (folder / "log").read_text(errors="replace")
    shutil.rmtree(folder)
    if faults and not done:
        sys.exit("nothing was struck, so nothing has been shown")
    if process.returncode:
        sys.exit(f"the run ended with status {process.returncode}:\n{text[-3000:]}")
    valid = [line for line in lines if line["event"] == "valid"][-1]
    return {
        "status": process.returncode,
        "done": done,
        "ppl": valid["ppl"],
        "tokens": lines[-1]["tokens"],
        "wall_seconds": time.monotonic() - began,
        "lost_seconds": lost_seconds,
    }


def most_lost(run: Path) -> float:
    """The longest stretch of recorded training that a resume undid, in seconds: 0 without any."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line]
    undone = [
        before["seconds"] - line["seconds"]
        for before, line in pairwise(lines)
        if line["event"] == "resume" and "seconds" in before
    ]
    return max(undone, default=0.0)


def children(parent: int, role: str) -> list[int]:
    """The processes that a run has started in this role and that run."""
    found = []
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended meanwhile
            continue
        if state not in "TZ" and any(role in Path(a).name and a.endswith(".json") for a in command):
            found.append(int(pid))
    return found


def wake(stopped: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Let those go on whose time has come."""
    for moment, pid in stopped:
        if time.monotonic() > moment:
            strike(pid, signal.SIGCONT)
    return [(moment, pid) for moment, pid in stopped if time.monotonic() <= moment]


def strike(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it was replaced
        return


if __name__ == "__main__":
    main()
