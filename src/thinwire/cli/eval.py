"""`thinwire eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from thinwire.cli.flags import (
    Adapter,
    ArpaWeight,
    CacheLambda,
    CacheTheta,
    Device,
    DynamicDecay,
    DynamicRate,
    PrintJson,
    Step,
    Threads,
)
from thinwire.errors import UserError

if TYPE_CHECKING:
    from thinwire.inference.evaluate import Measured
    from thinwire.inference.trained_model import TrainedModel
    from thinwire.runs.evaluation import Evaluation


def evaluate(
    run: Path,
    /,
    *,
    data: Annotated[Path | None, Parameter(metavar="DATA")] = None,
    split: Literal["valid", "test"] | None = None,
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True, metavar="FILE")] = None,
    step: Step = None,
    adapter: Adapter = None,
    average: int | None = None,
    cache: int | None = None,
    cache_theta: CacheTheta = None,
    cache_lambda: CacheLambda = None,
    dynamic: int | None = None,
    dynamic_rate: DynamicRate = None,
    dynamic_decay: DynamicDecay = None,
    arpa: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    arpa_weight: ArpaWeight = None,
    as_json: PrintJson = False,
    device: Device = "auto",
    threads: Threads = None,
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
    average
        Measure the mean of the parameters of this many newest checkpoints too, in rows of its own.
    cache
        Measure with a neural cache of this many positions too, in rows of its own.
    dynamic
        Measure also with a copy of the model that learns from the text, in rows of its own. It
        takes a step each time after this many tokens are scored.
    arpa
        Measure an n-gram model in ARPA format alone and interpolated with the model too, in rows of
        their own. Its words are the model's tokens.

    Examples
    --------
    thinwire eval run --split test
    thinwire eval run --text other.txt --json
    """
    if text is not None and (data is not None or split is not None):
        raise UserError("--text is a text of its own: leave out --data and --split")

    from thinwire.cli.further import dynamic_evaluation, neural_cache, refuse_adapter

    asked = neural_cache(cache, cache_theta, cache_lambda)
    learning = dynamic_evaluation(dynamic, dynamic_rate, dynamic_decay)
    if asked is not None and asked.is_tuned and text is None and split in (None, "valid"):
        raise UserError(
            "auto tunes the cache on the validation split, which is what is measured here: "
            "add --split test, or name a text with --text"
        )

    from thinwire.inference.arpa import check_weight, interpolation

    check_weight(arpa, arpa_weight)

    from thinwire.inference.evaluate import evaluate_split, evaluate_text
    from thinwire.inference.load import load

    def measure(model: TrainedModel, **further: Any) -> Measured:
        if text is not None:
            return evaluate_text(model, text, **further)
        return evaluate_split(model, data, split or "valid", **further)

    mean = None
    if average is not None:
        if text == "-":
            raise UserError("standard input can be read once only: --average needs a file")
        refuse_adapter(average, adapter)
        mean = load(run, average=average, device=device, threads=threads)
    model = load(run, step, adapter=adapter, device=device, threads=threads)
    found_cache = None if asked is None else asked.resolve(model)
    ngram = None
    if arpa is not None:
        ngram = interpolation(model, arpa, arpa_weight, model.run.config.data.context, data)
    measured = measure(model, cache=found_cache, dynamic=learning, ngram=ngram)
    if mean is not None:
        measured = replace(measured, averaged=measure(mean).evaluation)
    settings: dict[str, float] = {}
    if found_cache is not None:
        settings |= {"cache_theta": found_cache.theta, "cache_lambda": found_cache.weight}
    if ngram is not None:
        settings["arpa_weight"] = ngram.weight
    if as_json:
        print(_json(run, model.loaded_step, measured, settings))
    else:
        print(_lines(measured, settings))


def _json(run: Path, step: int, measured: Measured, settings: Mapping[str, float]) -> str:
    """The result as JSON; NaN and infinity become null."""
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
    record |= settings
    for name, _, one in _further(measured):
        record[f"{name}_ppl"] = one.ppl
        record[f"{name}_ppl_known"] = one.ppl_known
        record[f"{name}_bits_per_character"] = one.bits_per_character(measured.num_characters)
    finite = {
        key: None if isinstance(value, float) and not isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite)


def _lines(measured: Measured, settings: Mapping[str, float]) -> str:
    found = measured.evaluation
    rows = [
        ("perplexity", f"{found.ppl:.2f}"),
        ("  of known words", f"{found.ppl_known:.2f}"),
        ("bits a character", f"{measured.bits_per_character:.4f}"),
        ("tokens scored", f"{found.tokens_scored:,}"),
        ("  unknown", f"{found.tokens_unknown:,}"),
    ]
    for _, title, one in _further(measured):
        rows += [(title, f"{one.ppl:.2f}"), ("  known words", f"{one.ppl_known:.2f}")]
    if "arpa_weight" in settings:
        rows.append(("--arpa-weight", f"{settings['arpa_weight']:.4f}"))
    return "\n".join(f"{name:18}{value:>14}" for name, value in rows)


def _further(measured: Measured) -> list[tuple[str, str, Evaluation]]:
    """The further evaluations that were asked for: key in JSON, title, and result."""
    plain, learning = measured.dynamic or (None, None)
    found = [
        ("cache", "with the cache", measured.cached),
        ("dynamic_plain", "as one stream", plain),
        ("dynamic", "  learning from it", learning),
        ("average", "with the average", measured.averaged),
        ("ngram", "the n-gram model", measured.ngram),
        ("interpolated", "both together", measured.interpolated),
    ]
    return [(key, title, one) for key, title, one in found if one is not None]
