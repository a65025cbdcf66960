"""LSTM, Transformer or causal convolutions: what does each learn in equal time, and how fast is it?

Models of equal size, one thread, on bytes of Shakespeare, bytes of verse and words of verse: bits a
character over time, tokens/s of training side by side, and tokens/s of writing. With `--speed` only
the rates.

    python -m benchmarks.questions.models [--quick] [--speed]
"""

from __future__ import annotations

import argparse
import json
from math import log2
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.corpora import corpus as data_folder
from benchmarks.lab.child import child
from benchmarks.record.write import RESULTS, spread, table, write
from thinwire.report.palette import LIGHT

SEED, CURVE_SECONDS, POINTS, EVAL_TOKENS, FEW_TOKENS = 1, 80.0, 8, 50_000, 2_000
ROUNDS, ROUND_SECONDS, WRITTEN_TOKENS = 3, 6.0, 1_000
BYTES = {"loss.kind": "full", "data.length": 64}
# A corpus: where it is from, how it is prepared, and the settings of every model on it.
CORPORA: dict[str, tuple[str, list[str], dict[str, object]]] = {
    "bytes of Shakespeare": ("shakespeare", ["--tokenizer=bytes"], BYTES),
    "bytes of verse": ("poetry", ["--tokenizer=bytes"], BYTES),
    "words of verse": ("poetry", ["--vocab-size=20000"], {}),
}
# The first one decides how large the others are.
MODELS: dict[str, dict[str, object]] = {
    "LSTM": {"model.kind": "lstm", "model.width": 256},
    "Transformer": {"model.kind": "transformer", "model.layers": 2},
    "causal_conv": {"model.kind": "causal_conv", "model.attention": False},
    "causal_conv, attention": {"model.kind": "causal_conv", "model.heads": 2},
}
# Over bytes a long first convolution costs little.
OF_BYTES: dict[str, dict[str, object]] = {
    "causal_conv": {"model.first_kernel": 16},
    "causal_conv, attention": {"model.first_kernel": 16},
}
WIDTHS = range(16, 513, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few seconds each: only a try")
    parser.add_argument("--speed", action="store_true", help="only the rates")
    parser.add_argument("--child", nargs=2, metavar=("DATA", "SETTINGS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        data, settings = arguments.child
        print(json.dumps(measure(Path(data), json.loads(settings))))
        return
    rounds, round_seconds, seconds = ROUNDS, ROUND_SECONDS, CURVE_SECONDS
    if arguments.quick:
        rounds, round_seconds, seconds = 1, 2.0, 2.0
    found: dict[str, Any] = {}
    for corpus, (name, options, settings) in CORPORA.items():
        data = data_folder(name, *options)
        models = {
            model: {**settings, **own, **(OF_BYTES.get(model, {}) if settings else {})}
            for model, own in MODELS.items()
        }
        models, sizes = of_equal_size(data, models)
        rates: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
        for _ in range(rounds):
            for model, one in models.items():
                rates[model].append(run(data, one, round_seconds, every=1e9))
        curves = {}
        if not arguments.speed:
            for model, one in models.items():
                curves[model] = run(data, one, seconds, every=seconds / POINTS)["curve"]
        found[corpus] = {"settings": models, "sizes": sizes, "rates": rates, "curves": curves}
    body = (
        f"Models of equal size, one thread, seed {SEED}, the defaults of `thinwire train` but for "
        "what the record names. Training: tokens/s, and over those of the LSTM, from "
        f"{rounds} rounds of {round_seconds:g} s side by side (median, least to most). Writing: "
        f"{WRITTEN_TOKENS:,} tokens, one stream.\n\n{table(rate_rows(found))}"
    )
    if arguments.speed:
        write("models-speed", "Rates of the kinds of models", body, {"runs": found, "seed": SEED})
        return
    draw(found, RESULTS / "models.png")
    body += (
        f"\nBits a character of {EVAL_TOKENS:,} tokens of the validation text over time "
        f"([over time](models.png)):\n\n{table(curve_rows(found))}"
    )
    write("models", "Kinds of models", body, {"runs": found, "seed": SEED})


def rate_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """A line for each corpus and model."""
    return [
        {
            "text": corpus,
            "model": model,
            "width": str(runs["settings"][model]["model.width"]),
            "M parameters": f"{runs['sizes'][model] / 1e6:.2f}",
            "training, tokens/s": f"{median(r['tokens_per_second'] for r in rates):,.0f}",
            "of the LSTM's": spread(
                [
                    ours["tokens_per_second"] / theirs["tokens_per_second"]
                    for ours, theirs in zip(rates, runs["rates"]["LSTM"], strict=True)
                ]
            ),
            "writing, tokens/s": f"{median(r['written_per_second'] for r in rates):,.0f}",
        }
        for corpus, runs in found.items()
        for model, rates in runs["rates"].items()
    ]


def curve_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """A line for each corpus and model, after parts of the time."""
    rows = []
    for corpus, runs in found.items():
        for model, curve in runs["curves"].items():
            row = {"text": corpus, "model": model}
            for part in (0.25, 0.5, 1.0):
                point = curve[max(0, round(part * len(curve)) - 1)]
                row[f"after {part:.0%} of the time"] = f"{point['bits']:.3f}"
            rows.append(row | {"M tokens": f"{curve[-1]['tokens'] / 1e6:.2f}"})
    return rows


def of_equal_size(
    data: Path, models: dict[str, dict[str, object]]
) -> tuple[dict[str, dict[str, object]], dict[str, int]]:
    """The models with the widths that bring them nearest to the first one, and their sizes."""
    sizes: dict[str, int] = {}
    chosen = {}
    for model, settings in models.items():
        widths = [256] if "model.width" in settings else WIDTHS
        target = next(iter(sizes.values()), 0)
        tried = {width: num_parameters(data, settings | {"model.width": width}) for width in widths}
        width = min(tried, key=lambda width: abs(tried[width] - target))
        chosen[model], sizes[model] = settings | {"model.width": width}, tried[width]
    return chosen, sizes


def num_parameters(data: Path, settings: dict[str, object]) -> int:
    """Of a model with these settings."""
    import torch

    from thinwire.config import RunConfig
    from thinwire.data.corpus import Corpus
    from thinwire.language_model import LanguageModel

    config = RunConfig.from_dict(nested(settings))
    counts = torch.ones(len(Corpus.open(data).meta.counts), dtype=torch.int64)
    with torch.device("meta"):
        model = LanguageModel(config.model, config.loss, counts, SEED, initialise=False)
    return sum(parameter.numel() for parameter in model.by_name().values())


def run(data: Path, settings: dict[str, object], seconds: float, every: float) -> dict[str, Any]:
    """A training of so many seconds, in a process of its own."""
    tokens = EVAL_TOKENS if every < seconds else FEW_TOKENS
    settings = settings | {
        "run.seconds": seconds,
        "eval.every_seconds": every,
        "eval.tokens": tokens,
    }
    return child("models", "--child", data, json.dumps(settings))


def measure(data: Path, settings: dict[str, object]) -> dict[str, Any]:
    """Train; tokens/s from after the start-up, the curve, and the rate of writing."""
    import thinwire
    from thinwire.config import RunConfig
    from thinwire.data.corpus import Corpus
    from thinwire.runs.metrics import read_metrics
    from thinwire.training.loop import train

    fixed = {
        "run.threads": 1,
        "run.seed": SEED,
        "checkpoint.every_seconds": 1e9,
        "metrics.every_seconds": 0.5,
    }
    split = Corpus.open(data).meta.splits["valid"]
    with TemporaryDirectory() as out:
        train(data, Path(out) / "run", RunConfig.from_dict(nested(settings | fixed)))
        lines = read_metrics(Path(out) / "run")
        model = thinwire.load(Path(out) / "run", device="cpu", threads=1)
    model.generate(tokens=10)
    began = perf_counter()
    model.generate(tokens=WRITTEN_TOKENS)
    written_per_second = WRITTEN_TOKENS / (perf_counter() - began)
    rates = [line["tokens_per_second"] for line in lines if line["event"] == "train"]
    return {
        "tokens_per_second": median(rates[1:] or rates),
        "written_per_second": written_per_second,
        "curve": [
            {
                "seconds": line["seconds"],
                "tokens": line["tokens"],
                "bits": log2(line["ppl"]) * split.tokens / split.characters,
            }
            for line in lines
            if line["event"] == "valid"
        ],
    }


def nested(settings: dict[str, object]) -> dict[str, dict[str, object]]:
    """`{"model.kind": ...}` as sections."""
    sections: dict[str, dict[str, object]] = {}
    for name, value in settings.items():
        section, key = name.split(".")
        sections.setdefault(section, {})[key] = value
    return sections


def draw(found: dict[str, Any], file: Path) -> None:
    """A panel for each corpus, a line for each model."""
    figure = Figure(figsize=(4 * len(found), 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (corpus, runs) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for (model, curve), colour in zip(runs["curves"].items(), LIGHT, strict=False):
            seconds, bits = [p["seconds"] for p in curve], [p["bits"] for p in curve]
            axes.plot(seconds, bits, marker="o", markersize=3, color=colour, label=model)
        axes.set_title(corpus, fontsize=10)
        axes.set_xlabel("seconds of training, one thread")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("bits a character")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file)


if __name__ == "__main__":
    main()
