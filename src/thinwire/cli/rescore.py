"""`thinwire rescore`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from thinwire.cli.flags import Adapter, Arpa, ArpaWeight, Device, PrintJson, Step, Threads
from thinwire.errors import UserError

if TYPE_CHECKING:
    from thinwire.inference.nbest import NBest
    from thinwire.inference.rescore import WordErrors


def rescore(
    run: Path,
    nbest: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    out: Path,
    format: Literal["kaldi", "tsv"] = "kaldi",
    scores: str | None = None,
    weight: float | None = None,
    length_bonus: float | None = None,
    length_unit: Literal["words", "characters"] = "words",
    beam: int | None = None,
    tune: Annotated[str | None, Parameter(metavar="REFERENCE")] = None,
    reference: str | None = None,
    arpa: Arpa = None,
    arpa_weight: ArpaWeight = None,
    step: Step = None,
    adapter: Adapter = None,
    as_json: PrintJson = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Score n-best lists, or rank them anew.

    Each hypothesis is scored as a line on its own, its end included. Without a first pass, as Kaldi
    has it, the score of every word is written. Together with a first pass, a hypothesis is worth
    its first-pass score + WEIGHT times its natural log-probability + LENGTH-BONUS times its length,
    and the lists are written with the best hypothesis first.

    Parameters
    ----------
    run
        A run folder.
    nbest
        Hypotheses, or - for standard input. kaldi: a line utt-id-N w1 w2 ... for each. tsv: a line
        with the text, a tab and the first-pass score for each; higher is better.
    out
        File to write. kaldi without --scores, --weight and --tune: utt-id-N s1 s2 ... with the
        negative natural logarithm of each word and of the end. kaldi otherwise: the lines of NBEST
        in their new order. tsv: text and merged score, in their new order if it is known which
        lines belong together, by --beam or --tune.
    format
        Format of NBEST.
    scores
        First-pass costs for kaldi, a line utt-id-N cost for each; lower is better.
    weight
        Weight of the language model. Default: 1.
    length_bonus
        Added for each word of a hypothesis. Default: 0.
    length_unit
        What the length is counted in; NeMo counts characters.
    beam
        Hypotheses per utterance in a tsv. Default: what --tune or --reference make of it.
    tune
        What was really said: choose the weight and the bonus with the fewest word errors, and print
        the word error rates. kaldi: a line utt-id w1 w2 ... for each utterance. tsv: a line of text
        for each, or a JSON object with the key text.
    reference
        The same to print the word error rates of a given weight and bonus.

    Examples
    --------
    thinwire rescore run nbest.txt --out lm-scores.txt
    thinwire rescore run dev.txt --scores dev.cost --tune dev.ref --out dev.ranked
    thinwire rescore run beams.tsv --format tsv --beam 64 --weight 0.6 --out rescored.tsv
    """
    if tune is not None and (weight is not None or length_bonus is not None):
        raise UserError("--tune finds the weight and the bonus: leave out the others, or --tune")
    if tune is not None and reference is not None:
        raise UserError("--tune takes the references already: leave out --reference")
    if format == "tsv" and scores is not None:
        raise UserError("a tsv has its scores in its second column: leave out --scores")
    if format == "kaldi" and beam is not None:
        raise UserError("--beam is for tsv: Kaldi's lines say which utterance they belong to")

    import numpy as np

    from thinwire.cli.further import ngram
    from thinwire.console import progress_bar
    from thinwire.inference.arpa import check_weight
    from thinwire.inference.load import load
    from thinwire.inference.nbest import read_kaldi, read_references, read_tsv
    from thinwire.inference.rescore import (
        count_errors,
        errors_of,
        merged,
        ranked,
        tuned,
        words_from_tokens,
    )
    from thinwire.inference.score import line_logprobs

    check_weight(arpa, arpa_weight)
    is_merged = format == "tsv" or any(
        each is not None for each in (scores, weight, length_bonus, tune)
    )
    said = tune or reference
    if format == "kaldi":
        lists = read_kaldi(nbest, scores)
        references = read_references(said, lists) if said is not None else None
    else:
        references = read_references(said, None) if said is not None else None
        lists = read_tsv(nbest, beam)
        if references is not None:
            lists = _grouped(nbest, lists, beam, len(references))
    model = load(run, step, adapter=adapter, device=device, threads=threads)
    mixed_in = None if arpa is None else ngram(model, arpa, arpa_weight, "line")
    logprobs, words = [], []
    with progress_bar() as progress:
        task = progress.add_task("hypotheses", total=len(lists.texts))
        window = model.run.config.data.length
        scored = line_logprobs(model.model, model.tokenizer, lists.texts, window=window)
        if mixed_in is not None:
            scored = mixed_in.mix(scored)
        for text, line in zip(lists.texts, scored, strict=True):
            logprobs.append(float(line.logprob_T.sum()))
            if not is_merged:
                words.append(words_from_tokens(model.tokenizer, text.split(), line.logprob_T))
            progress.advance(task)
    logprob_H = np.array(logprobs)
    count = len if length_unit == "characters" else lambda text: len(text.split())
    length_H = np.array([count(text) for text in lists.texts], dtype=np.float64)
    errors_H = None if references is None else errors_of(lists, references)
    chosen = (1.0 if weight is None else weight), length_bonus or 0.0
    if tune is not None:
        assert errors_H is not None
        chosen = tuned(lists, logprob_H, length_H, errors_H)
    score_H = merged(lists, logprob_H, length_H, *chosen)
    with out.open("w", encoding="utf-8", newline="\n") as file:
        if not is_merged:
            for key, negative in zip(lists.keys, words, strict=True):
                file.write(" ".join([key, *(f"{each:.6f}" for each in negative)]) + "\n")
        else:
            order = list(ranked(lists, score_H)) or range(len(lists.texts))
            for index in order:
                row = (
                    f"{lists.keys[index]} {lists.texts[index]}".rstrip()
                    if lists.keys
                    else f"{lists.texts[index]}\t{score_H[index]:.6f}"
                )
                file.write(row + "\n")
    if references is not None and errors_H is not None:
        found = count_errors(lists, references, errors_H, score_H)
        print(_json(found, *chosen) if as_json else _table(found, *chosen))
    elif as_json:
        print(json.dumps({"weight": chosen[0], "length_bonus": chosen[1]}))


def _grouped(file: str, lists: NBest, beam: int | None, num_references: int) -> NBest:
    """Divide the hypotheses evenly among the references, in their order."""
    from dataclasses import replace

    size, rest = divmod(len(lists.texts), num_references)
    if rest or beam not in (None, size):
        raise UserError(
            f"{file} has {len(lists.texts):,} hypotheses, which are not {beam or 'as many'} for "
            f"each of {num_references:,} references"
        )
    utterances = {str(i): range(i * size, (i + 1) * size) for i in range(num_references)}
    return replace(lists, utterances=utterances)


def _json(found: WordErrors, weight: float, bonus: float) -> str:
    return json.dumps(
        {
            "wer": {
                "first": found.first / found.num_words,
                "rescored": found.chosen / found.num_words,
                "oracle": found.oracle / found.num_words,
            },
            "words": found.num_words,
            "weight": weight,
            "length_bonus": bonus,
        }
    )


def _table(found: WordErrors, weight: float, bonus: float) -> str:
    rows = {
        "word error rate": "",
        "  first hypotheses": f"{found.first / found.num_words:.2%}",
        "  rescored": f"{found.chosen / found.num_words:.2%}",
        "  oracle": f"{found.oracle / found.num_words:.2%}",
        "words": f"{found.num_words:,}",
        "--weight": f"{weight:.6g}",
        "--length-bonus": f"{bonus:.6g}",
    }
    return "\n".join(f"{name:20}{value:>12}".rstrip() for name, value in rows.items())
