"""How near is exact evaluation to what the machine's matrix products allow?

The arithmetic is counted: 2 operations a multiply-add, for the body's matrices and for the product
of hidden states with every row of the output table. `stock` is the same evaluation with the output
layer that PyTorch users write: `F.cross_entropy(F.linear(hidden, weight, bias), target)`.

    python -m benchmarks.questions.evaluation [--data DATA] [--quick]
"""

from __future__ import annotations

import argparse
from functools import partial
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.corpora import add_corpus, data_folder, record_name
from benchmarks.lab.child import peak_memory_bytes
from benchmarks.lab.gemm import gemm_flop_per_second
from benchmarks.record.write import spread, table, write
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.language_model import LanguageModel
from thinwire.loss.output import SoftmaxOutput
from thinwire.runs.evaluation import evaluate

ROUNDS = 7
TOKENS = 16_384
WIDTH = 256
# As many positions at a time as the usual 10 streams of 35 tokens have.
STOCK_POSITIONS = 350


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("--quick", action="store_true", help="three rounds, a quarter of the text")
    arguments = parser.parse_args()
    corpus = Corpus.open(data_folder(arguments))
    rounds, tokens = (3, TOKENS // 4) if arguments.quick else (ROUNDS, TOKENS)
    rows: list[dict[str, object]] = []
    record: dict[str, Any] = {}
    for threads in (1, 2):
        found = measure(corpus, threads, rounds, tokens)
        record[f"{threads} threads"] = found
        pairs = zip(found["tokens_per_second"], found["stock_tokens_per_second"], strict=True)
        rows.append(
            {
                "threads": threads,
                "GEMM rate": spread([r / 1e9 for r in found["gemm_flop_per_second"]], 0)
                + " GFLOP/s",
                "tokens/s": spread(found["tokens_per_second"], 0),
                "share of the limit": spread(found["shares"]),
                "times stock": spread([ours / stock for ours, stock in pairs]),
            }
        )
    body = (
        f"LSTM of width {WIDTH}, {corpus.meta.vocab_size:,} words, {tokens:,} tokens spread over "
        f"the validation split; {rounds} rounds in which the GEMM rate and both evaluations take "
        f"turns (median, least to most). Peak memory {peak_memory_bytes() / 2**20:,.0f} MB.\n\n"
        + table(rows)
    )
    record |= {"tokens": tokens, "rounds": rounds, "seed": 1, "quick": arguments.quick}
    write(record_name("evaluation", arguments.corpus), "Exact evaluation", body, record)


def measure(corpus: Corpus, threads: int, rounds: int, tokens: int) -> dict[str, Any]:
    """Matrix products and both evaluations in turns."""
    torch.set_num_threads(threads)
    model = make_model(corpus)
    flop = 2 * sum(p.numel() for p in model.blocks().values() if p.dim() == 2)
    output = model.output
    assert isinstance(output, SoftmaxOutput)
    flop += 2 * output.weight.numel()

    def tokens_per_second() -> float:
        began = perf_counter()
        data, meta = RunConfig().data, corpus.meta
        found = evaluate(
            model,
            corpus.ids("valid"),
            eos_id=meta.eos_id,
            unk_id=meta.unk_id,
            data=data,
            max_tokens=tokens,
        )
        return found.tokens_scored / (perf_counter() - began)

    record: dict[str, list[float]] = {
        key: [] for key in ("gemm_flop_per_second", "tokens_per_second", "stock_tokens_per_second")
    }
    for _ in range(rounds):
        record["gemm_flop_per_second"].append(gemm_flop_per_second())
        record["tokens_per_second"].append(tokens_per_second())
        with patch.object(output, "logprob", partial(stock, output)):
            record["stock_tokens_per_second"].append(tokens_per_second())
    rates = zip(record["tokens_per_second"], record["gemm_flop_per_second"], strict=True)
    return record | {"flop": flop, "shares": [speed * flop / rate for speed, rate in rates]}


def make_model(corpus: Corpus) -> LanguageModel:
    """An untrained model whose logits are spread as those of a trained one."""
    config = RunConfig.from_dict({"model": {"width": WIDTH, "layers": 1}})
    counts_V = torch.from_numpy(corpus.counts_V)
    model = LanguageModel(config.model, config.loss, counts_V, seed=1)
    assert isinstance(model.output, SoftmaxOutput)
    with torch.no_grad():
        model.output.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(1))
    return model


@torch.no_grad()
def stock(output: SoftmaxOutput, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """ln p(target) by PyTorch's own functions."""
    weight_VD, bias_V = output.weight, output.bias
    pieces = zip(hidden_ND.split(STOCK_POSITIONS), targets_N.split(STOCK_POSITIONS), strict=True)
    return -torch.cat(
        [F.cross_entropy(F.linear(h, weight_VD, bias_V), y, reduction="none") for h, y in pieces]
    )


if __name__ == "__main__":
    main()
