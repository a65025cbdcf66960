"""Does any input end in a traceback? Thousands of bad ones, over every verb of the command line.

Each seed makes one command line and what it reads: flags with values of wrong types and at the
edges, settings files, texts, data folders and run folders that are cut, flipped, spliced, of other
encodings or of other programs, names that need quoting, folders that may not be written, full
disks, too few file descriptors, closed pipes, Ctrl+C at a random moment. Demanded of every one:
exit status 0, 2 or 130; with 2 and 130 one sentence, on one line, at the end of standard error; no
traceback, nothing half-written, no process left, bounded memory and time.

    python -m benchmarks.faults.inputs [--trials 10000] [--seconds 600] [--seed 1] [--only SEED ...]
        [--verb VERB ...]

Nearly all run in children that are forked from one warm process, because a start takes seconds; one
in `--process-every` is a process of its own. What fails is printed with its seed, `--only SEED`
plays that one again and shows what it said, and `--keep` leaves its folder. The last line is JSON.
Exit status 1 if anything failed.

Ctrl+C is pressed while the command runs, from the first line of its `main` to the last: what
Python says of one that comes earlier is nobody's, and one that comes later just ends the process.

Not tried: several workers or servers, whose processes take seconds each (`strangers.py` and the
soak start them); downloads; named pipes in place of files, for which waiting is right. As root,
folders that may not be written are tried as the user `nobody`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import FrameType

import torch

import thinwire as thinwire_package
from benchmarks.faults.bad_commands import Trial, make_trial
from benchmarks.faults.bases import make_bases
from thinwire.__main__ import main as thinwire
from thinwire.errors import UserError
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.folder import RunFolder

STATUSES = (0, 2, 130)
MEMORY_BYTES = 1 << 30  # resident
# More than the warm process has; every thread may reserve more than a hundred megabytes of it.
ADDRESS_BYTES = 4 << 30
HANG_SECONDS = 60.0
INTERRUPT_SECONDS = 1.5  # what goes on for longer gets Ctrl+C, and another one 2 seconds later
NOBODY = 65534
SENTENCE = "thinwire: "
STANDARD = (
    "importlib.readers",
    "lzma",
    "gzip",
    "zstandard",
    "matplotlib.pyplot",
    "torch._inductor",
    "torch._dynamo",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600.0, help="end after so long")
    parser.add_argument("--seed", type=int, default=1, help="of the first trial")
    parser.add_argument("--only", type=int, nargs="+", help="play these seeds alone")
    parser.add_argument("--verb", nargs="+", dest="verbs", help="only trials of these verbs")
    parser.add_argument("--keep", action="store_true", help="leave the folders of what failed")
    parser.add_argument("--process-every", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    began = time.monotonic()
    seeds = arguments.only or range(arguments.seed, arguments.seed + arguments.trials)
    found, failed, peak = Counter[str](), dict[int, list[str]](), 0
    with tempfile.TemporaryDirectory(prefix="inputs-") as scratch:
        bases = Path(scratch, "bases")
        in_child(lambda: make_bases(bases))
        os.chmod(scratch, 0o755)
        for seed in seeds:
            if time.monotonic() - began > arguments.seconds:
                break
            own_process = seed % arguments.process_every == 0
            folder = Path(scratch, str(seed))
            trial = make_trial(seed, bases, folder, own_process=own_process)
            if arguments.verbs and trial.verb not in arguments.verbs:
                trial.clean_up(folder)
                continue
            outcome = run(trial, folder, own_process=own_process)
            peak = max(peak, outcome.peak_bytes)
            found[f"{trial.verb} {outcome.status}"] += 1
            if faults := judge(trial, folder, outcome):
                failed[seed] = faults
                print(f"FAILED: seed {seed}: {trial.describe()}", flush=True)
                for fault in faults:
                    print(f"    {fault}", flush=True)
            if arguments.only is not None:
                print(trial.describe(), f"status {outcome.status}", sep="\n")
                print(f"--- stdout\n{outcome.stdout[:2000]}\n--- stderr\n{outcome.stderr[-6000:]}")
            if arguments.keep and (faults or arguments.only is not None):
                kept = Path(tempfile.mkdtemp(prefix=f"inputs-{seed}-"))
                shutil.copytree(folder, kept, symlinks=True, dirs_exist_ok=True)
                print(f"    kept in {kept}")
            trial.clean_up(folder)
    result = {
        "trials": sum(found.values()),
        "first_seed": arguments.seed,
        "failed": len(failed),
        "failed_seeds": sorted(failed),
        "seconds": round(time.monotonic() - began),
        "peak_bytes": peak,
        "verbs": dict(sorted(found.items())),
    }
    print(json.dumps(result), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return bool(failed)


class Outcome:
    """How a trial ended; a status below 0 is a signal."""

    def __init__(
        self, status: int, stdout: bytes, stderr: bytes, peak_bytes: int, left_processes: bool
    ) -> None:
        self.status, self.peak_bytes = status, peak_bytes
        self.left_processes = left_processes
        self.stdout, self.stderr = (s.decode("utf-8", "replace") for s in (stdout, stderr))


def warm_up() -> None:
    """Import all that a command imports: other users may be unable to read it."""
    for module in walk_packages(thinwire_package.__path__, "thinwire."):
        if module.name.endswith("__main__"):
            continue
        with suppress(ImportError):  # adapters of packages that are not installed
            import_module(module.name)
    encodings = ("utf-8", "ascii", "latin-1", "idna", "utf-8-sig")
    for name in (*(f"encodings.{e.replace('-', '_')}" for e in encodings), *STANDARD):
        with suppress(ImportError):
            import_module(name)


def in_child(action: Callable[[], object]) -> None:
    """Have this done by a forked child, so that this process stays without threads."""
    child = os.fork()
    if not child:
        try:
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("what is good could not be made")


def run(trial: Trial, folder: Path, *, own_process: bool) -> Outcome:
    """Run it to its end, or kill it after a while."""
    (folder / ".io").mkdir(mode=0o777)
    streams = {name: folder / ".io" / name for name in ("stdin", "stdout", "stderr")}
    streams["stdin"].write_bytes(trial.stdin)
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _become(trial, folder, streams, own_process=own_process)
    deadline = time.monotonic() + HANG_SECONDS
    signals_due = sorted(time.monotonic() + after for after in trial.signal_after)
    status = usage = None
    while status is None:
        done, found, usage = os.wait4(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(found)
        elif time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
        else:
            if signals_due and time.monotonic() > signals_due[0] and own_process:
                signals_due.pop(0)
                os.killpg(child, signal.SIGINT)
            time.sleep(0.002)
    stdout, stderr = (
        streams[name].read_bytes() if streams[name].exists() else b""
        for name in ("stdout", "stderr")
    )
    assert usage is not None, "it has ended"
    return Outcome(status, stdout, stderr, usage.ru_maxrss * 1024, _some_are_left(child))


def _some_are_left(group: int) -> bool:
    """Whether processes of the group outlive their parent for more than a moment."""
    try:
        for _ in range(100):
            os.killpg(group, 0)
            time.sleep(0.02)
        os.killpg(group, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False


def _become(trial: Trial, folder: Path, streams: dict[str, Path], *, own_process: bool) -> None:
    """What the forked child does."""
    status = 99
    try:
        os.setpgid(0, 0)
        descriptors = [os.open(streams["stdin"], os.O_RDONLY), trial.open_stdout(streams["stdout"])]
        descriptors.append(
            os.open(streams["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        )
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        # Those of the warm process know what its descriptors were.
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
        os.chdir(folder / "cwd")
        os.environ.update(trial.environment)
        if trial.as_nobody:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if own_process:
            command = [sys.executable, "-m", "thinwire", *trial.tokens]
            os.execv(sys.executable, [os.fsencode(part) for part in command])
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_BYTES, size + ADDRESS_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for limit, value in trial.limits.items():
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        signal.signal(signal.SIGALRM, _interrupt)
        first = (trial.signal_after or (INTERRUPT_SECONDS,))[0]
        signal.setitimer(signal.ITIMER_REAL, first, 2.0)
        tempfile.tempdir = None
        # What processes that it spawns import, as those of `python -m thinwire` do.
        sys.modules["__main__"] = sys.modules["thinwire.__main__"]
        try:
            status = thinwire(trial.tokens)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        threading._shutdown()  # type: ignore[attr-defined]  # as Python does: what still writes ends first
        sys.stdout.flush()
    except BaseException:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
        status = 1
    finally:
        os._exit(status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Press Ctrl+C, unless the command is over."""
    while frame is not None:
        if frame.f_code is thinwire.__code__:
            os.killpg(0, signal.SIGINT)  # as a terminal does
            return
        frame = frame.f_back


def judge(trial: Trial, folder: Path, outcome: Outcome) -> list[str]:
    """What must not be; empty: all is well."""
    faults = []
    # Ctrl+C before or after our code: for a shell that is 130, too; while Python starts, or looks
    # for the module, it makes 1 of it.
    ours = re.search(r'/thinwire/(cli/|__main__\.py", line \d+, in main)', outcome.stderr)
    looked_for = outcome.status == 1 and outcome.stderr.rstrip().endswith("KeyboardInterrupt")
    interrupted_alone = (outcome.status == -signal.SIGINT or looked_for) and not ours
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    if outcome.status not in STATUSES and not interrupted_alone:
        last = lines[-1] if lines else ""
        faults.append(f"exit status {outcome.status}: {last[:300]}")
    if "Exception ignored" in outcome.stderr:
        faults.append(f"an exception was lost: {lines[-3:]}")
    if "Traceback" in outcome.stderr and not interrupted_alone:
        where = [line.strip() for line in lines if line.lstrip().startswith('File "')]
        faults.append(f"a traceback, {where[-1] if where else ''}")
    sentences = [line for line in lines if line.startswith(SENTENCE)]
    cut_off = resource.RLIMIT_FSIZE in trial.limits  # standard error is a file, too
    if (
        outcome.status in (2, 130)
        and not cut_off
        and (len(sentences) != 1 or lines[-1] != sentences[0] or len(sentences[0]) <= len(SENTENCE))
    ):
        faults.append(f"not one sentence: {lines[-3:]}")
    if outcome.status == 0 and sentences:
        faults.append(f"status 0, though it said {sentences}")
    if odd := {c for c in outcome.stderr if c in "\x1b\x07\x08\x7f\u202e" or "\x80" <= c < "\xa0"}:
        faults.append(f"control characters reach the terminal: {odd!r}")
    faults += [f"left behind: {name}" for name in trial.left_behind(folder)]
    faults += _half_a_run(trial, folder)
    if outcome.peak_bytes > MEMORY_BYTES:
        faults.append(f"it took {outcome.peak_bytes:,} bytes of memory")
    if outcome.left_processes:
        faults.append("it left processes behind")
    return faults


def _half_a_run(trial: Trial, folder: Path) -> list[str]:
    """What is wrong with the run folder that the trial made, if it did."""
    out = folder / "cwd" / "new"
    if trial.verb not in ("train", "adapt", "serve") or not out.is_dir():
        return []
    try:
        run = RunFolder.open(out)
        for step in Checkpoints(out).steps:
            run.load_model(Checkpoints(out).load(step))
    except UserError as error:
        return [f"half a run: {error}"]
    return []


if __name__ == "__main__":
    sys.exit(main())
