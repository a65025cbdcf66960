"""The picture of the README: perplexity over time for each loss, from the results of `losses`.

python -m benchmarks.questions.curve [--corpus novels]
"""

from __future__ import annotations

import argparse
import json

import matplotlib

from benchmarks.corpora import record_name
from benchmarks.record.write import RESULTS, ROOT

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from thinwire.report.palette import LIGHT

TEXTS = {
    "poetry": "173,000 words, 29.7 M tokens of verse",
    "novels": "67,000 words, 16.5 M tokens of novels",
}
NAMES = {
    "sampled": "sampled (thinwire)",
    "stock": "full softmax, stock PyTorch",
    "full": "full (thinwire)",
    "adaptive": "adaptive",
    "nce": "NCE",
    "linear_cross_entropy": "linear_cross_entropy",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", choices=TEXTS, default="poetry")
    corpus = parser.parse_args().corpus
    record = RESULTS / f"{record_name('losses', corpus)}.json"
    curves = json.loads(record.read_text())["curves"]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150)
    for (loss, name), colour in zip(NAMES.items(), LIGHT, strict=False):
        seconds = [point["seconds"] for point in curves[loss]]
        ppl = [point["ppl"] for point in curves[loss]]
        strong = loss in ("sampled", "stock")
        axes.plot(
            seconds,
            ppl,
            marker="o",
            markersize=4 if strong else 2.5,
            linewidth=2.4 if strong else 1.2,
            color=colour,
            label=f"{name}: {ppl[-1]:.0f} after {seconds[-1]:,.0f} s",
        )
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_yticks([100, 150, 200, 300, 400, 600])
    axes.set_xlabel("seconds of training on one thread (log scale)")
    axes.set_ylabel("validation perplexity (log scale)")
    axes.set_title(f"{TEXTS[corpus]}, LSTM of width 256", fontsize=11)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5)
    figure.tight_layout()
    target = ROOT / "docs" / "images" / "curve.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target)
    print(target)


if __name__ == "__main__":
    main()
