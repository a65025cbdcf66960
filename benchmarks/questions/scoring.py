"""How near is `thinwire score` to what the machine's matrix products allow?

Short lines of verse, each scored from a fresh state by the exact softmax, one thread. The whole
command is timed, start and output included, in turns with the rate of the machine's matrix
products; the arithmetic that is counted is that of the body and of the logits, 2 operations per
multiply-add. A tenth of the lines shows whether memory grows with their number, and
whether `score --context text` and `eval` come to the same total.

    python -m benchmarks.questions.scoring [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from benchmarks.corpora import corpus, fetched
from benchmarks.lab.child import thinwire
from benchmarks.lab.gemm import gemm_flop_per_second
from benchmarks.record.write import spread, table, write
from thinwire import load
from thinwire.loss.output import SoftmaxOutput

VOCAB_SIZE, TOKENS, LINES, ROUNDS = 20_000, 500_000, 100_000, 3
QUICK_TOKENS, QUICK_LINES = 20_000, 2_000
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few lines, one round")
    quick = parser.parse_args().quick
    tokens, num_lines, rounds = TOKENS, LINES, ROUNDS
    if quick:
        tokens, num_lines, rounds = QUICK_TOKENS, QUICK_LINES, 1
    torch.set_num_threads(1)
    data = corpus("poetry", f"--vocab-size={VOCAB_SIZE}")
    with TemporaryDirectory() as folder:
        run, text = Path(folder) / "run", Path(folder) / "lines.txt"
        budget = ["--tokens", tokens, "--threads", 1, "--seed", SEED]
        thinwire("train", data, "--out", run, *budget)
        model = load(run, threads=1).model
        assert isinstance(model.output, SoftmaxOutput)
        flop = 2 * sum(p.numel() for p in model.blocks().values() if p.dim() == 2)
        flop += 2 * model.output.weight.numel()
        runs = []
        for _ in range(rounds):
            for lines in (num_lines // 10, num_lines):
                write_lines(text, lines)
                rate = gemm_flop_per_second()
                runs.append({"lines": lines, "flop_per_second": rate, **score(run, text)})
        write_lines(text, num_lines // 10)
        difference = totals_differ(run, text)
    by_lines = [[run for run in runs if run["lines"] == n] for n in (num_lines // 10, num_lines)]
    rows = [row(some, flop) for some in by_lines]
    body = (
        f"LSTM of width 256, {VOCAB_SIZE:,} words, lines of verse on their own, one thread; "
        f"{rounds} rounds in which the GEMM rate and the command take turns (median, least to "
        f"most). {flop / 1e6:.1f} MFLOP per token. The total of `score --context text` differs "
        f"from that of `eval` by {difference:.1e} of it.\n\n{table(rows)}"
    )
    record = {"runs": runs, "flop_per_token": flop, "difference": difference, "seed": SEED}
    write("scoring", "Scoring lines", body, record)


def row(runs: list[dict[str, Any]], flop: float) -> dict[str, str]:
    """A line of the table, for one number of lines."""
    shares = [run["tokens"] * flop / run["seconds"] / run["flop_per_second"] for run in runs]
    return {
        "lines": f"{runs[0]['lines']:,}",
        "tokens": f"{runs[0]['tokens']:,}",
        "seconds": spread([run["seconds"] for run in runs], 1),
        "tokens/s": spread([run["tokens"] / run["seconds"] for run in runs], 0),
        "share of the limit": spread(shares),
        "peak memory": f"{max(run['peak_bytes'] for run in runs) / 2**20:,.0f} MB",
    }


def write_lines(file: Path, num_lines: int) -> None:
    """The first lines of the corpus."""
    with fetched("poetry").open(encoding="utf-8") as lines:
        file.write_text("".join(line for line, _ in zip(lines, range(num_lines), strict=False)))


def score(run: Path, text: Path) -> dict[str, Any]:
    """Run the command; its tokens, seconds and peak memory."""
    command = [sys.executable, "-m", "thinwire", "score", str(run), str(text), "--threads", "1"]
    out = text.with_suffix(".scores")
    out.unlink(missing_ok=True)
    began = perf_counter()
    process = subprocess.Popen([*command, "--out", str(out)])
    _, status, usage = os.wait4(process.pid, 0)  # which tells what it used
    seconds = perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    tokens = sum(int(line.split("\t")[1]) for line in out.read_text().splitlines())
    return {"tokens": tokens, "seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}


def totals_differ(run: Path, text: Path) -> float:
    """By what part the log-probability of a text by `score` differs from that by `eval`."""
    found = json.loads(thinwire("eval", run, "--text", text, "--json"))
    by_eval: float = -log(found["ppl"]) * found["tokens_scored"]
    lines = thinwire("score", run, text, "--context", "text").splitlines()
    by_score = sum(float(line.split("\t")[0]) for line in lines)
    return abs(by_score / by_eval - 1)


if __name__ == "__main__":
    main()
