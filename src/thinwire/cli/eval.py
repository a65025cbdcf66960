"""`thinwire eval`."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from thinwire.errors import UserError

if TYPE_CHECKING:
    from thinwire.inference.evaluate import Measured
    from thinwire.inference.load import TrainedModel
    from thinwire.inference.neural_cache import NeuralCache


def evaluate(
    run: Path,
    /,
    *,
    data: Annotated[Path | None, Parameter(metavar="DATA")] = None,
    split: Literal["valid", "test"] | None = None,
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True, metavar="FILE")] = None,
    step: int | None = None,
    adapter: str | None = None,
    average: int | None = None,
    cache: int | None = None,
    cache_theta: float | None = None,
    cache_lambda: float | None = None,
    arpa: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    arpa_weight: float | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int | None = None,
) -> None:
    """Measure the exact perplexity of a trained model.

    The perplexity is one average over all tokens, ends of lines included, and each probability is
    normalised over the whole vocabulary. Words that are not in the vocabulary count as one word,
    `<unk>`, which may be easy to predict: the perplexity of the known words alone may be higher or
    lower.

    Parameters
    ----------
    run
        A run folder.
    data
        A data folder with the same tokenizer. Default: the one that the model was trained on.
    split
        The part of the data folder to measure. Default: valid.
    text
        UTF-8 text to measure instead of a data folder: a file, or - for standard input. Files that
        end in .gz, .xz or .zst are unpacked.
    step
        The step of the run to load. Default: the step with the best validation.
    adapter
        The name of adaptation layers made by `thinwire adapt --method layers` from this run.
    average
        Measure the mean of the parameters of this many newest checkpoints too, in rows of its own.
    cache
        Measure with a neural cache of this many positions too, in rows of its own.
    cache_theta
        How sharply the cache prefers similar hidden states. Default: 1.
    cache_lambda
        The part of the probability that the cache gives. Default: 0.05.
    arpa
        Measure an n-gram model in ARPA format alone and interpolated with the model too, in rows of
        their own. Its words are the model's tokens.
    arpa_weight
        The part of the probability that the n-gram model gives, from 0 to 1. Default: what suits
        the validation text best.
    as_json
        Print one JSON object and nothing else.
    device
        Where to compute. auto: CUDA if there is a GPU, else the CPU.
    threads
        Number of compute threads. Default: one per core.

    Examples
    --------
    thinwire eval run --split test
    thinwire eval run --text other.txt --json
    """
    if text is not None and (data is not None or split is not None):
        raise UserError("--text is a text of its own: leave out --data and --split")

    from thinwire.cli.cache_flags import neural_cache

    asked = neural_cache(cache, cache_theta, cache_lambda)

    from thinwire.inference.arpa import Interpolation, check_weight, interpolation

    check_weight(arpa, arpa_weight)

    from thinwire.inference.evaluate import evaluate_split, evaluate_text
    from thinwire.inference.load import load

    def measure(
        model: TrainedModel, cache: NeuralCache | None, ngram: Interpolation | None
    ) -> Measured:
        if text is not None:
            return evaluate_text(model, text, cache, ngram)
        return evaluate_split(model, data, split or "valid", cache, ngram)

    mean = None
    if average is not None:
        if text == "-":
            raise UserError("standard input can be read once only: --average needs a file")
        if adapter is not None:
            raise UserError("--average is of the run's own steps: leave out --adapter")
        mean = load(run, average=average, device=device, threads=threads)
    model = load(run, step, adapter=adapter, device=device, threads=threads)
    ngram = None
    if arpa is not None:
        ngram = interpolation(model, arpa, arpa_weight, model.run.config.data.context, data)
    measured = measure(model, asked, ngram)
    if mean is not None:
        measured = replace(measured, averaged=measure(mean, None, None).evaluation)
    weight = None if ngram is None else ngram.weight
    print(_json(run, model.loaded_step, measured, weight) if as_json else _lines(measured, weight))


def _json(run: Path, step: int, measured: Measured, arpa_weight: float | None = None) -> str:
    """What is not a number, or beyond all numbers, is null."""
    found = measured.evaluation
    where = {"text": measured.source} if measured.split is None else {"data": measured.source}
    record = {
        "ppl": found.ppl,
        "ppl_known": found.ppl_known,
        "bits_per_character": measured.bits_per_character,
        "tokens_scored": found.tokens_scored,
        "tokens_unknown": found.tokens_unknown,
        "characters": measured.num_characters,
        "run": str(run),
        "step": step,
        **where,
        "split": measured.split,
    }
    if (cached := measured.cached) is not None:
        record["cache_ppl"] = cached.ppl
        record["cache_ppl_known"] = cached.ppl_known
        record["cache_bits_per_character"] = cached.bits_per_character(measured.num_characters)
    if (averaged := measured.averaged) is not None:
        record["average_ppl"] = averaged.ppl
        record["average_ppl_known"] = averaged.ppl_known
        record["average_bits_per_character"] = averaged.bits_per_character(measured.num_characters)
    for name, other in (("ngram", measured.ngram), ("interpolated", measured.interpolated)):
        if other is not None:
            record[f"{name}_ppl"] = other.ppl
            record[f"{name}_ppl_known"] = other.ppl_known
            record[f"{name}_bits_per_character"] = other.bits_per_character(measured.num_characters)
            record["arpa_weight"] = arpa_weight
    finite = {
        key: None if isinstance(value, float) and not isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite)


def _lines(measured: Measured, arpa_weight: float | None) -> str:
    found = measured.evaluation
    rows = {
        "perplexity": f"{found.ppl:.2f}",
        "  of known words": f"{found.ppl_known:.2f}",
        "bits a character": f"{measured.bits_per_character:.4f}",
        "tokens scored": f"{found.tokens_scored:,}",
        "  unknown": f"{found.tokens_unknown:,}",
    }
    if (cached := measured.cached) is not None:
        rows["with the cache"] = f"{cached.ppl:.2f}"
        rows["  known words"] = f"{cached.ppl_known:.2f}"
    if (averaged := measured.averaged) is not None:
        rows["with the average"] = f"{averaged.ppl:.2f}"
        rows["  its known words"] = f"{averaged.ppl_known:.2f}"
    for name, other in (("the n-gram", measured.ngram), ("both", measured.interpolated)):
        if other is not None:
            rows[name] = f"{other.ppl:.2f}"
            rows[f"  {name}, known"] = f"{other.ppl_known:.2f}"
    if arpa_weight is not None:
        rows["--arpa-weight"] = f"{arpa_weight:.4f}"
    return "\n".join(f"{name:18}{value:>14}" for name, value in rows.items())
