"""How the defaults were chosen: one setting changed at a time, on held-out training text.

The training text without its last 4,000 lines trains, and these lines validate; the validation and
test splits of the corpus are not looked at. Equal tokens, so that the perplexities do not depend
on the machine's speed.

    python -m benchmarks.questions.defaults [--tokens T] [SECTION.KEY=VALUE[,...] ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.corpora import CACHE, CORPORA, prepared, record_name, texts
from benchmarks.record.write import table, write

HELD_OUT_LINES = 4000
QUICK_VARIANTS, QUICK_TOKENS = ("", "data.batch=16"), 20_000
VARIANTS = (
    "",
    "optim.lr=0.002",
    "optim.lr=0.01",
    "optim.row_lr=0.1",
    "optim.row_lr=0.4",
    "optim.clip=0",
    "optim.warmup_steps=0",
    "optim.warmup_steps=50",
    "optim.warmup_steps=100",
    "loss.samples=2000",
    "loss.power=0.75",
    "loss.power=0.5",
    "data.batch=16",
    "data.batch=16,optim.lr=0.003",
    "data.length=20",
    "model.tied=true",
    "model.dropout=0.1",
    "model.width=512",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--corpus", choices=CORPORA, default=CORPORA[0])
    parser.add_argument("--quick", action="store_true", help="two variants, few tokens")
    parser.add_argument("variants", nargs="*", default=VARIANTS)
    arguments = parser.parse_args()
    variants, tokens = arguments.variants, arguments.tokens
    if arguments.quick:
        variants, tokens = QUICK_VARIANTS, QUICK_TOKENS
    data = held_out(arguments.corpus)
    rows = [measure(data, variant, tokens) for variant in variants]
    body = (
        f"{tokens:,} tokens each, defaults but for what is named, seed 1; exact "
        f"perplexity of 60,000 tokens of the last {HELD_OUT_LINES:,} lines of the training "
        f"text.\n\n{table(rows)}"
    )
    write(
        record_name("defaults", arguments.corpus),
        "Choosing the defaults",
        body,
        {"rows": rows, "seed": 1},
    )


def held_out(corpus: str) -> Path:
    """The training text in two: what trains and what validates."""
    text = CACHE / f"{corpus}-held-out"
    text.mkdir(parents=True, exist_ok=True)
    train, valid = text / "train.txt", text / "valid.txt"
    if not valid.exists():
        lines = texts(corpus)["train"].read_text(encoding="utf-8").splitlines(keepends=True)
        train.write_text("".join(lines[:-HELD_OUT_LINES]), encoding="utf-8")
        valid.write_text("".join(lines[-HELD_OUT_LINES:]), encoding="utf-8")
    return prepared(f"{corpus}-held-out-data", train, "--valid", valid)


def measure(data: Path, variant: str, tokens: int) -> dict[str, str]:
    """One run with some settings changed."""
    flags = [
        f"--{part}" for part in variant.replace("=true", "").replace("=", " ").split(",") if part
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "thinwire", "train", data, "--out", run]
        command += ["--tokens", tokens, "--eval.tokens", 60_000, "--eval.every_tokens", tokens]
        command += " ".join(flags).split()
        subprocess.run([str(part) for part in command], check=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = next(line for line in reversed(lines) if line["event"] == "valid")
    return {
        "changed": variant or "nothing",
        "perplexity": f"{valid['ppl']:.2f}",
        "tokens/s": f"{valid['tokens'] / valid['seconds']:,.0f}",
    }


if __name__ == "__main__":
    main()
