"""How far does a little new text take a trained model, and what does it forget?

A model of English verse is adapted to 50,000 words of the King James Bible, of which a tenth is
held out. Both methods, with new text alone and with as much old text; the same model trained from
scratch on the mixture; and new words.

    python -m benchmarks.questions.adaptation [--seeds N ...] [--tokens T] [--quick]

What is measured already is not measured again, but with `--again`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.corpora import CACHE, corpus, fetched, prepared
from benchmarks.lab.child import thinwire
from benchmarks.record.kept import Kept
from benchmarks.record.write import spread, table, write
from thinwire import Corpus, load
from thinwire.adapt.account import OLD_TOKENS, measure
from thinwire.runs.metrics import read_metrics

BASE_TOKENS = 13_000_000
NEW_WORDS_OF_TEXT = 50_000
NEW_WORDS = 2000
QUICK_LINES, QUICK_TOKENS, QUICK_ADAPT_TOKENS = 20_000, 60_000, 8_000
VARIANTS: dict[str, list[object]] = {
    "continue, mixed 1:1": ["--mix-ratio", 1],
    "continue, mixed 2:1": ["--mix-ratio", 2],
    "continue, new text only": ["--mix-ratio", 0],
    "layers, new text only": ["--method", "layers"],
    "layers, mixed 1:1": ["--method", "layers", "--mix-ratio", 1],
    "layers after the embedding too": ["--method", "layers", "--input-layers"],
    f"continue, mixed 1:1, {NEW_WORDS:,} new words": ["--mix-ratio", 1, "--new-words", NEW_WORDS],
    "continue, mixed 4:1 (the default)": [],
}
SCRATCH = "from scratch on the mixture"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    parser.add_argument("--tokens", type=int, default=BASE_TOKENS, help="of the base's training")
    parser.add_argument("--quick", action="store_true", help="one seed, few tokens: only a try")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    arguments = parser.parse_args()
    name, seeds, tokens = "adaptation", arguments.seeds, arguments.tokens
    budget: list[object] = []
    if arguments.quick:
        name, seeds, tokens = "adaptation-quick", [1], QUICK_TOKENS
        budget = ["--tokens", QUICK_ADAPT_TOKENS]
    work = CACHE / f"{name}-{tokens}"
    work.mkdir(parents=True, exist_ok=True)
    data, new = old_data(arguments.quick), new_text(work / "kjv-50k.txt")
    kept = Kept(name, again=arguments.again)
    for seed in seeds:
        for number, (variant, options) in enumerate(VARIANTS.items()):
            out, more = work / f"{seed}-{number}", [*options, *budget]
            adapted = partial(adapt, data, new, work, out, seed, tokens, more)
            kept.measure(f"{variant}/{seed}", adapted)
        scratch = partial(from_scratch, work / f"{seed}-0", work / f"{seed}-scratch", seed)
        kept.measure(f"{SCRATCH}/{seed}", scratch)
    found = {
        variant: [kept.found[f"{variant}/{seed}"] for seed in seeds]
        for variant in (*VARIANTS, SCRATCH)
    }
    before = [change["new"]["before"]["ppl"] for change in found["continue, mixed 1:1"]]
    body = (
        f"Base: {tokens:,} tokens of verse, the defaults of `thinwire train`. New text: the first "
        f"{NEW_WORDS_OF_TEXT:,} words of the King James Bible, every variant with its default "
        f"budget, seeds {', '.join(map(str, seeds))} (median, least to most), one thread. "
        f"Perplexity of new text before: {spread(before, 1)}. Seconds: of training alone.\n\n"
        f"{table([row(variant, changes) for variant, changes in found.items()])}\n"
        f"Measured at {kept.origins()}.\n"
    )
    record = {"measurements": kept.found, "base_tokens": tokens}
    write(name, "Adaptation to a little new text", body, record)


def adapt(
    data: Path, new: Path, work: Path, out: Path, seed: int, tokens: int, options: list[object]
) -> dict[str, Any]:
    """Adapt a base, which is trained if it is not there; perplexities before and after."""
    base = work / f"base-{seed}"
    if not is_over(base):
        shutil.rmtree(base, ignore_errors=True)
        budget = ["--tokens", tokens, "--eval.every_tokens", tokens, "--threads", 1]
        thinwire("train", data, "--out", base, *budget, "--seed", seed)
    if not (out / "adapt.json").exists() or not is_over(out):
        shutil.rmtree(out, ignore_errors=True)
        thinwire("adapt", base, new, "--out", out, "--seed", seed, "--threads", 1, *options)
    found: dict[str, Any] = json.loads((out / "adapt.json").read_text())["after"]
    layers = base / "adapters" / f"{out.name}.safetensors"
    share = layers.stat().st_size / model_bytes(base) if layers.exists() else None
    return found | {"layers_share": share, "seconds": last_line(out)["seconds"]}


def is_over(run: Path) -> bool:
    """Whether a run has ended, so that it need not be made again."""
    return (run / "metrics.jsonl").exists() and bool(last_line(run)["event"] == "end")


def row(name: str, changes: list[dict[str, Any]]) -> dict[str, str]:
    """One line of the table."""

    def change(text: str, key: str) -> str:
        ratios = [
            100 * (c[text]["after"][key] / c[text]["before"][key] - 1) for c in changes if c[text]
        ]
        return f"{spread(ratios, 1)}%" if ratios else "-"

    unknown = [
        100 * c["new"]["after"]["tokens_unknown"] / c["new"]["after"]["tokens_scored"]
        for c in changes
    ]
    shares = [100 * c["layers_share"] for c in changes if c.get("layers_share")]
    return {
        "method": name,
        "new ppl": spread([c["new"]["after"]["ppl"] for c in changes], 1),
        "change": change("new", "ppl"),
        "change of known words": change("new", "ppl_known"),
        "unknown": f"{spread(unknown)}%",
        "change of old ppl": change("old", "ppl"),
        "layers' file, of the model's": f"{spread(shares)}%" if shares else "-",
        "seconds": spread([c["seconds"] for c in changes], 0),
    }


def from_scratch(adapted: Path, out: Path, seed: int) -> dict[str, Any]:
    """A new model on the same mixture, for as many tokens, with the rates of `thinwire train`."""
    change: dict[str, Any] = json.loads((adapted / "adapt.json").read_text())["after"]
    budget = ["--tokens", last_line(adapted)["tokens"], "--data.batch", 16, "--threads", 1]
    if not is_over(out):
        shutil.rmtree(out, ignore_errors=True)
        thinwire("train", adapted / "data", "--out", out, *budget, "--seed", seed)
    model, texts = load(out), Corpus.open(adapted / "data")
    for text, split, most in (("new", "valid", 0), ("old", "test", OLD_TOKENS)):
        ids, settings = texts.ids(split), model.run.config.data
        found = measure(model.model, model.tokenizer, ids, settings, most)
        assert found is not None, "there is text"
        change[text]["after"] = asdict(found)
    return change | {"seconds": last_line(out)["seconds"]}


def old_data(quick: bool) -> Path:
    """Verse from the package index; for a try, its beginning."""
    if not quick:
        return corpus("poetry")
    short = CACHE / "poetry-short.txt"
    with fetched("poetry").open(encoding="utf-8") as lines:
        short.write_text("".join(line for line, _ in zip(lines, range(QUICK_LINES), strict=False)))
    return prepared("poetry-short", short)


def new_text(out: Path) -> Path:
    """The first verses of the King James Bible."""
    num_words, kept = 0, []
    for line in fetched("kjv").read_text(encoding="utf-8").splitlines(keepends=True):
        kept.append(line)
        num_words += len(line.split())
        if num_words >= NEW_WORDS_OF_TEXT:
            break
    out.write_text("".join(kept), encoding="utf-8")
    return out


def model_bytes(run: Path) -> int:
    """The size of a model's parameters on disk."""
    return max(file.stat().st_size for file in run.glob("step-*/model.safetensors"))


def last_line(run: Path) -> dict[str, Any]:
    """What a run recorded at its end."""
    return read_metrics(run)[-1]


if __name__ == "__main__":
    main()
