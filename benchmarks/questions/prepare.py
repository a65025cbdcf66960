"""How fast is `thinwire prepare`, and how much memory do all its processes take?

The whole command is timed, from the start of Python to the finished folder; the seconds of CPU of
all its processes tell what a busy machine hides. Memory is the resident
memory of the process and its children, summed, so that what they share counts more than once.

    python -m benchmarks.questions.prepare [--text FILE] [--rounds N]

Without `--text` it takes the text of a corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

from benchmarks.corpora import CORPORA, record_name, texts
from benchmarks.record.write import spread, table, write

SAMPLE_SECONDS = 0.02
TIMES = 4
MANY_WORDS, QUICK_WORDS = 2_000_000, 50_000
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--corpus", choices=CORPORA, default=CORPORA[0])
    parser.add_argument("--quick", action="store_true", help="one round, fewer words")
    arguments = parser.parse_args()
    rounds, num_words = (1, QUICK_WORDS) if arguments.quick else (ROUNDS, MANY_WORDS)
    text = arguments.text or texts(arguments.corpus)["train"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cases: dict[str, list[object]] = {
            "word": [text],
            "word, from standard input": ["-"],
            "space": [text, "--tokenizer", "space"],
            "bytes": [text, "--tokenizer", "bytes"],
            "bpe": [text, "--tokenizer", "bpe"],
            f"word, the text {TIMES} times": [text] * TIMES,
            f"word, {num_words / 1e6:g} M different words": [
                many_words(work / "words.txt", num_words), "--min-count", "1",
            ],
        }  # fmt: skip
        record: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(rounds):
            record["word"].append(measure(text, cases["word"], work / "data"))
        for case in list(cases)[1:]:
            record[case].append(measure(text, cases[case], work / "data"))
    rows = [
        {
            "": case,
            "M tokens": f"{runs[0]['tokens'] / 1e6:.1f}",
            "ids": f"{runs[0]['vocab_size']:,.0f}",
            "seconds": spread([run["seconds"] for run in runs]),
            "seconds of CPU": spread([run["cpu_seconds"] for run in runs]),
            "M tokens/s": spread([run["tokens"] / run["seconds"] / 1e6 for run in runs]),
            "peak memory, MB": spread([run["peak_bytes"] / 1e6 for run in runs], 0),
        }
        for case, runs in record.items()
    ]
    size = text.stat().st_size / 1e6
    body = f"`{text.name}`, {size:.0f} MB; {rounds} rounds of the first.\n\n{table(rows)}"
    write(record_name("prepare", arguments.corpus), "Preparing text", body, record)


def measure(text: Path, options: list[object], out: Path) -> dict[str, float]:
    """One run of the command."""
    command = [sys.executable, "-m", "thinwire", "prepare", *map(str, options)]
    command += ["--out", str(out), "--force"]
    began, cpu_began = perf_counter(), cpu_seconds()
    with text.open("rb") as file:
        process = subprocess.Popen(command, stdin=file, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(resident_bytes(member) for member in tree(process.pid)))
        sleep(SAMPLE_SECONDS)
    seconds = perf_counter() - began
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    meta = json.loads((out / "meta.json").read_text())
    tokens = sum(split["tokens"] for split in meta["splits"].values())
    sizes = {"tokens": tokens, "vocab_size": meta["vocab_size"]}
    cpu = cpu_seconds() - cpu_began
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, **sizes}


def cpu_seconds() -> float:
    """What all processes that have ended took, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def tree(pid: int) -> list[int]:
    """A process and everything below it."""
    try:
        threads = Path(f"/proc/{pid}/task").glob("*/children")
        children = [child for file in threads for child in file.read_text().split()]
    except OSError:
        return []
    return [pid, *(member for child in children for member in tree(int(child)))]


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def many_words(path: Path, num_words: int) -> Path:
    """A text in which no word occurs twice."""
    with path.open("w") as file:
        for first in range(0, num_words, 10):
            file.write(" ".join(spelt(number) for number in range(first, first + 10)) + "\n")
    return path


def spelt(number: int) -> str:
    """A number as a word, its digits as letters."""
    return format(number * 2654435761 % 2**32, "08x").translate(LETTERS)


LETTERS = str.maketrans("0123456789abcdef", "ghijklmnopabcdef")

if __name__ == "__main__":
    main()
