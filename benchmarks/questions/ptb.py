"""Penn Treebank: what do models of the usual sizes reach, sampled and with the full softmax?

Mikolov's split derives from licensed data and cannot be fetched: `--ptb` names a folder with
`ptb.train.txt`, `ptb.valid.txt` and `ptb.test.txt`. Two layers of 200 and of 650, tied, with
dropout, for a number of passes over the text; the published perplexities are those of the word
language model among PyTorch's examples (2x200 tied, 40 epochs: 87.17; 2x650 tied, 40 epochs:
75.96). Test perplexity is exact, unknown words included.

    python -m benchmarks.questions.ptb --ptb DIR [--sizes 200 650] [--epochs E] [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.corpora import CACHE, prepared
from benchmarks.lab.child import thinwire
from benchmarks.record.write import table, write
from thinwire.runs.metrics import read_metrics

TOKENS = {"train": 929_589, "valid": 73_760, "test": 82_430}
PUBLISHED = {200: 87.17, 650: 75.96}
DROPOUT = {200: 0.2, 650: 0.5}
LOSSES = ("full", "sampled")
EPOCHS, SEED = 40.0, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ptb", type=Path, required=True, help="the folder with the three files")
    parser.add_argument("--sizes", type=int, nargs="+", choices=PUBLISHED, default=[200])
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--quick", action="store_true", help="a twentieth of a pass, any text")
    arguments = parser.parse_args()
    epochs = 0.05 if arguments.quick else arguments.epochs
    data = data_of(arguments.ptb, quick=arguments.quick)
    found = {
        f"2x{size}, {loss}": measure(data, size, loss, epochs)
        for size in arguments.sizes
        for loss in LOSSES
    }
    rows = [
        {
            "model, tied": name,
            "test ppl": f"{run['ppl']:.2f}",
            "published": f"{PUBLISHED[run['size']]:.2f}",
            "M tokens": f"{run['tokens'] / 1e6:.1f}",
            "minutes": f"{run['seconds'] / 60:.1f}",
        }
        for name, run in found.items()
    ]
    body = (
        f"{epochs:g} passes at most, the step with the best validation, all cores, seed {SEED}; "
        "the settings of `thinwire train` but for width, layers, dropout and the tied output.\n\n"
        + table(rows)
    )
    write("ptb", "Penn Treebank", body, {"runs": found, "epochs": epochs, "seed": SEED})


def data_of(ptb: Path, *, quick: bool) -> Path:
    """The split as a data folder; it must be the usual one, unless this is only a try."""
    files = {split: ptb / f"ptb.{split}.txt" for split in TOKENS}
    for file in files.values():
        if not file.exists():
            sys.exit(f"--ptb needs {file}")
    held_out = ("--valid", files["valid"], "--test", files["test"])
    name = "ptb-quick" if quick else "ptb"
    data = prepared(name, files["train"], "--tokenizer", "space", *held_out)
    about = json.loads((data / "meta.json").read_text())["splits"]
    found = {split: about[split]["tokens"] for split in TOKENS}
    if found != TOKENS and not quick:
        sys.exit(f"this is another split: it has {found} tokens, and the usual one {TOKENS}")
    return data


def measure(data: Path, size: int, loss: str, epochs: float) -> dict[str, Any]:
    """Train one model, and score the test text."""
    with TemporaryDirectory(dir=CACHE) as folder:
        run = Path(folder) / "run"
        model = ["--model.width", size, "--model.layers", 2, "--model.dropout", DROPOUT[size]]
        budget = ["--epochs", epochs, "--eval.patience", 5, "--seed", SEED]
        thinwire("train", data, "--out", run, *model, "--model.tied", "--loss.kind", loss, *budget)
        end = read_metrics(run)[-1]
        ppl = json.loads(thinwire("eval", run, "--split", "test", "--json"))["ppl"]
    return {"size": size, "ppl": ppl, "tokens": end["tokens"], "seconds": end["seconds"]}


if __name__ == "__main__":
    main()
