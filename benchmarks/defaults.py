"""How the defaults were chosen: one setting changed at a time, on held-out training text.

The novels' training text without its last 4,000 lines trains, these lines validate; neither the
validation nor the test novels are looked at. Equal tokens, so that the perplexities do not depend
on the machine's speed.

    python benchmarks/defaults.py [--tokens 2000000] [SECTION.KEY=VALUE[,SECTION.KEY=VALUE...] ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from record import CACHE, novels_text, prepared, table, write

HELD_OUT_LINES = 4000
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
    parser.add_argument("variants", nargs="*", default=VARIANTS)
    arguments = parser.parse_args()
    data = held_out()
    rows = [measure(data, variant, arguments.tokens) for variant in arguments.variants]
    body = (
        f"{arguments.tokens:,} tokens each, defaults but for what is named, seed 1; exact "
        f"perplexity of 60,000 tokens of the last {HELD_OUT_LINES:,} lines of the training "
        f"text.\n\n{table(rows)}"
    )
    write("defaults", "Choosing the defaults", body, {"rows": rows, "seed": 1})


def held_out() -> Path:
    """The training text in two: what trains and what validates."""
    text = CACHE / "novels-held-out"
    text.mkdir(parents=True, exist_ok=True)
    train, valid = text / "train.txt", text / "valid.txt"
    if not valid.exists():
        lines = novels_text()["train"].read_text(encoding="utf-8").splitlines(keepends=True)
        train.write_text("".join(lines[:-HELD_OUT_LINES]), encoding="utf-8")
        valid.write_text("".join(lines[-HELD_OUT_LINES:]), encoding="utf-8")
    return prepared("novels-held-out-data", train, "--valid", valid)


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
