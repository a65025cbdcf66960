"""Does a save survive anything? Kills at random moments, and a disk that fills at every byte.

Kills: a child saves, prunes and resumes, and is killed (kill -9) after a random moment; then the
newest step that it had promised must load whole, without a word of damage. Every fourth time a file
of the newest step is damaged afterwards (cut, a bit flipped, removed): that must be said, and an
older step must load. Full disk: the size of a file is limited to every possible number of bytes in
turn, by the kernel (RLIMIT_FSIZE), and, as root, a small tmpfs is left with every possible number
of free pages: each save must either succeed or be refused in a sentence, with the step before whole
and nothing half-written left.

    python -m benchmarks.faults.saving [--kills 1000] [--seconds 600] [--seed 1] [--only SEED]

Each kill has a seed of its own, from which the folder before it, the moment and the damage follow;
what fails is printed with its seed, and `--only SEED` plays that one again. Exit status 1 if
anything failed. Power cuts are not tried: they need a disk that forgets what was not flushed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from thinwire.errors import UserError
from thinwire.runs.checkpoints import Checkpoints

LONGEST_SECONDS = 0.03  # from the first save of a child to its end
PAGE_BYTES = 4096


class Failed(Exception):
    """What must not be."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0, help="end after so long")
    parser.add_argument("--seed", type=int, default=1, help="of the first kill")
    parser.add_argument("--only", type=int, help="play this seed alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(arguments.seed, arguments.seed + arguments.kills)
    if arguments.only is not None:
        seeds = range(arguments.only, arguments.only + 1)
    deadline = time.monotonic() + arguments.seconds
    failures, found = 0, Counter[str]()
    for seed in seeds:
        if time.monotonic() > deadline:
            break
        failures += not tried(f"kill, seed {seed}", partial(count_kill, found, seed))
    print(f"{sum(found.values())} kills: {dict(sorted(found.items()))}", flush=True)
    if arguments.only is None:
        for name, fill in (("file size", full_file), ("tmpfs", full_tmpfs)):
            failures += not tried(name, partial(print_found, fill, deadline))
    print(f"{failures} failed", flush=True)
    return bool(failures)


def count_kill(found: Counter[str], seed: int) -> None:
    """Kill once more, and count where that fell."""
    found.update([kill(seed)])


def print_found(fill: Callable[[float], str], deadline: float) -> None:
    """Fill a disk, and print what came of it."""
    print(fill(deadline), flush=True)


def tried(name: str, action: Callable[[], Any]) -> bool:
    """Whether it went well; if not, what went wrong is printed."""
    try:
        action()
        return True
    except Exception as error:
        print(f"FAILED: {name}: {error!r}", flush=True)
        return False


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="saving-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def groups(step: int, num_rows: int = 20_000) -> dict[str, dict[str, torch.Tensor]]:
    weight = torch.full((num_rows, 16), float(step))
    return {"model": {"weight": weight}, "optimizer": {"sum": weight[:, 0].clone()}}


def save(checkpoints: Checkpoints, step: int, num_rows: int = 20_000) -> None:
    checkpoints.save(step, groups(step, num_rows), {"step": step}, best=step % 5 == 0)
    checkpoints.wait()


def check_whole(run: Path) -> tuple[int, str]:
    """The step that loads, and what was said; Failed if it is not what was saved."""
    said = StringIO()
    with redirect_stderr(said):
        loaded = Checkpoints(run).load()
    whole = loaded.state == {"step": loaded.step} and all(
        bool((loaded.open(stem)[name] == loaded.step).all())
        for stem, name in (("model", "weight"), ("optimizer", "sum"))
    )
    if not whole:
        raise Failed(f"step {loaded.step} loads, but is not what was saved")
    return loaded.step, said.getvalue()


def kill(seed: int) -> str:
    """One kill; what it was."""
    rng = random.Random(seed)
    keep, num_before = rng.choice([1, 2, 3]), rng.randrange(5)
    what = rng.choice(["saving", "pruning", "resuming"])
    delay_seconds, damages = rng.uniform(0, LONGEST_SECONDS), rng.random() < 0.25
    with folder() as run:
        for step in range(1, num_before + 1):
            # Whoever prunes finds more than it keeps.
            save(Checkpoints(run, 9 if what == "pruning" else keep), step, num_rows=500)
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            work(run, keep, what, tell, rng)
        os.close(tell)
        os.read(told, 1)  # the first save is at hand
        time.sleep(delay_seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        promised = num_before + len(os.read(told, 1 << 16))
        os.close(told)
        if not promised and not Checkpoints(run).steps:
            return f"{what}, before anything was saved"
        step, said = check_whole(run)
        if step < promised or said:
            raise Failed(f"step {step} loads, {promised} was promised, and it said {said!r}")
        if damages:
            damage(run, step, rng)
            what = f"{what}, then damaged"
        # Whoever goes on from here finds nothing in its way, and leaves nothing but steps.
        save(Checkpoints(run, keep), step + 1)
        if check_whole(run) != (step + 1, ""):
            raise Failed(f"step {step + 1} was saved and does not load")
        if others := [p.name for p in run.iterdir() if not p.name.removeprefix("step-").isdigit()]:
            raise Failed(f"left behind: {others}")
        if len(Checkpoints(run).steps) > keep + 1:
            raise Failed(f"{Checkpoints(run).steps} stay, of which {keep} and the best should")
    return what


def work(run: Path, keep: int, what: str, tell: int, rng: random.Random) -> None:
    """What the child does until it is killed."""
    try:
        checkpoints = Checkpoints(run, keep)
        step = checkpoints.newest or 0
        os.write(tell, b"!")
        while True:
            if what == "resuming":
                checkpoints = Checkpoints(run, keep)
                step = checkpoints.load().step if checkpoints.steps else 0
            step += 1
            save(checkpoints, step, num_rows=rng.choice([500, 20_000]))
            os.write(tell, b".")
            if rng.random() < 0.3:  # once more, by way of step-N.old
                save(checkpoints, step)
    finally:
        os._exit(1)  # never back into the parent's program


def damage(run: Path, step: int, rng: random.Random) -> None:
    """Damage the newest step; that must be said, and an older one must load if there is one."""
    file = rng.choice(sorted(Checkpoints(run).load(step).path.iterdir()))
    data = bytearray(file.read_bytes())
    how = rng.choice(["cut", "flip", "remove"])
    if how == "cut":
        file.write_bytes(data[: rng.randrange(len(data))])
    elif how == "flip":
        # Not in white space, where JSON means the same.
        at = rng.choice(
            [i for i in range(max(0, len(data) - 64), len(data)) if data[i] > 32] or [0]
        )
        data[at] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    others = [other for other in Checkpoints(run).steps if other != step]
    try:
        found, said = check_whole(run)
    except UserError as error:
        if others or "damaged" not in str(error):
            raise Failed(f"{file.name} {how}: {error}, though {others} are whole") from None
        return
    if found == step or f"step {step} is damaged" not in " ".join(said.split()):
        raise Failed(f"{file.name} {how}: step {found} loads, and it said {said!r}")


def refused_or_saved(run: Path, num_rows: int, words: str) -> bool:
    """Save step 2, and whether that went well; step 1 must be whole if not."""
    try:
        save(Checkpoints(run), 2, num_rows)
    except UserError as error:
        if words not in str(error):
            raise Failed(f"it said {error}") from None
        if [path.name for path in run.iterdir()] != ["step-1"] or check_whole(run) != (1, ""):
            raise Failed("step 1 is not all there is") from None
        return False
    if check_whole(run) != (2, ""):
        raise Failed("step 2 was saved and does not load")
    shutil.rmtree(run / "step-2")
    return True


def full_file(deadline: float) -> str:
    """No file can be longer than so many bytes, for every number of them."""
    with folder() as run:
        save(Checkpoints(run), 1, num_rows=10)
        longest = max(file.stat().st_size for file in (run / "step-1").iterdir())
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        tries = saved = 0
        try:
            for num_bytes in range(longest + 2):
                if time.monotonic() > deadline:
                    break
                resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
                try:
                    saved += refused_or_saved(run, 10, "could not be saved")
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, before)
                tries += 1
        except Failed as error:
            raise Failed(f"at {num_bytes} bytes: {error}") from None
    return f"files of at most 0 to {tries - 1} bytes: {tries - saved} refused, {saved} saved"


def full_tmpfs(deadline: float) -> str:
    """So many pages of a disk are free, for every number of them."""
    with folder() as run:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(run)]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return "tmpfs: none can be mounted here, so not tried"
        try:
            (run / "run").mkdir()
            save(Checkpoints(run / "run"), 1, num_rows=500)
            tries = saved = 0
            while saved < 2 and time.monotonic() < deadline:
                free = shutil.disk_usage(run).free - tries * PAGE_BYTES
                (run / "filler").write_bytes(bytes(free))
                try:
                    saved += refused_or_saved(run / "run", 500, "The disk is full")
                except Failed as error:
                    raise Failed(f"with {tries} pages free: {error}") from None
                (run / "filler").unlink()
                tries += 1
        finally:
            subprocess.run(["umount", str(run)], check=True)
    return f"tmpfs with 0 to {tries - 1} free pages: {tries - saved} refused, {saved} saved"


if __name__ == "__main__":
    sys.exit(main())
