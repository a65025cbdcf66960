"""How long do the 10 most probable of 67,000 words take?

An LSTM of width 256 with made-up rows, for the time does not depend on what was learnt. The prompts
have 10 words each; reading them is part of the time.

    python -m benchmarks.questions.candidates [--quick]
"""

from __future__ import annotations

import argparse
from time import perf_counter

import torch

from benchmarks.record.write import spread, table, write
from thinwire.config import RunConfig
from thinwire.inference.candidates import most_probable, num_rows_at_a_time
from thinwire.inference.decoding import Decoder
from thinwire.language_model import LanguageModel
from thinwire.loss.output import SoftmaxOutput

VOCAB_SIZE, WIDTH, TOP, WORDS, ROUNDS = 67_000, 256, 10, 10, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    rounds = 2 if parser.parse_args().quick else ROUNDS
    torch.set_num_threads(1)
    config = RunConfig.from_dict({"model": {"width": WIDTH, "layers": 1}})
    counts_V = 1e7 / torch.arange(1, VOCAB_SIZE + 1)
    model = LanguageModel(config.model, config.loss, counts_V, seed=1)
    generator = torch.Generator().manual_seed(1)
    assert isinstance(model.output, SoftmaxOutput)
    with torch.no_grad():
        model.output.weight.normal_(0.0, 0.5, generator=generator)
    decoder = Decoder(model, eos_id=0, data=config.data)
    rows, record = [], {}
    for num_prompts in (1, num_rows_at_a_time(VOCAB_SIZE)):
        shape = (num_prompts, WORDS)
        prompts = torch.randint(1, VOCAB_SIZE, shape, generator=generator).tolist()
        milliseconds, sorted_milliseconds = [], []
        for _ in range(rounds + 1):
            began = perf_counter()
            hidden_ND = decoder.read(prompts)[0]
            _, ids_NK = most_probable(model, hidden_ND, TOP)
            found = perf_counter()
            logprob_NV = model.output.distribution(decoder.read(prompts)[0])
            by_rank_NV = logprob_NV.sort(dim=1, descending=True, stable=True).indices
            ended = perf_counter()
            assert torch.equal(ids_NK, by_rank_NV[:, :TOP])
            milliseconds.append((found - began) * 1e3 / num_prompts)
            sorted_milliseconds.append((ended - found) * 1e3 / num_prompts)
        record[f"{num_prompts} prompts"] = {
            "milliseconds": milliseconds[1:],
            "sorted_milliseconds": sorted_milliseconds[1:],
        }
        rows.append(
            {
                "prompts at a time": num_prompts,
                "ms per prompt": spread(milliseconds[1:]),
                "by sorting the softmax": spread(sorted_milliseconds[1:]),
            }
        )
    body = (
        f"LSTM of width {WIDTH}, {VOCAB_SIZE:,} words, the {TOP} most probable words after "
        f"{WORDS}, one thread; {rounds} rounds (median, least to most), in each of which both ways "
        f"gave the same words.\n\n{table(rows)}"
    )
    write("candidates", "Candidates", body, record | {"seed": 1, "rounds": rounds})


if __name__ == "__main__":
    main()
