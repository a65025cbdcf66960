"""Adapts a trained model to new text, from beginning to end.

1. **Read** the new text, and hold some of it out; find the old text.
2. **Grow** the vocabulary by new words, if that is asked for.
3. **Mix** new and old text in the data folder of the new run.
4. **Begin**: write step 0 of the new run. It is the old model, with a row for each new word or with
   adaptation layers that are identities so far.
5. **Train** with the ordinary loop, from step 0, until the perplexity of held-out new text stops
   falling.
6. **Account**: measure new and old text, before and after.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from thinwire.adapt.account import OLD_TOKENS, Account, Change, Measured, measure, measured_from
from thinwire.adapt.begin import (
    ABOUT_FILE,
    DATA_FOLDER,
    link_or_copy,
    new_run,
    refuse_existing,
    settings,
    write_run,
)
from thinwire.adapt.data import Split, write_data
from thinwire.adapt.mixture import mix, num_passes
from thinwire.adapt.old import find_old
from thinwire.adapt.options import AdaptOptions
from thinwire.adapt.text import Text, encode
from thinwire.adapt.words import NewWords, require_words
from thinwire.console import print_line
from thinwire.data.corpus import Corpus
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.files import read_json
from thinwire.inference.load import load
from thinwire.inference.trained_model import TrainedModel
from thinwire.launch.start import start, under_torchrun
from thinwire.models.config import AdapterPlaces
from thinwire.runs.adapter_file import MODEL_FILE, AdapterFile, parameters_checksum
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.evaluation import Ids
from thinwire.runs.folder import FROZEN_FILE, RunFolder

DEFAULT_MIX_RATIO = {"continue": 4.0, "layers": 0.0}
"""Tokens of old text per token of new text. With 1, old text became 5% worse (LOG.md)."""


def adapt(
    run: Path | str,
    texts: Sequence[str],
    out: Path | str,
    options: AdaptOptions,
    *,
    mix_with: str | None = None,
    step: int | None = None,
    resume: bool = False,
) -> Account:
    """Adapt a trained run to new text; the new run is in `out`.

    Args:
        run: the run folder to adapt; it stays as it is.
        texts: new text: files, folders, globs or `-`.
        out: the run folder to create.
        options: the settings of the adaptation.
        mix_with: old text or its data folder; None: the data folder that the run was trained on,
            if it is still there.
        step: the step of the run to adapt; None: the step with the best validation.
        resume: continue the adaptation that is in `out`; the other arguments have no effect.

    Returns:
        The perplexities of new and old text, before and after.

    Raises:
        UserError: an option or the text is refused, or `out` is taken.
    """
    run, out = Path(run), Path(out)
    if under_torchrun():
        raise UserError(
            "adapt starts its workers itself; to train on under torchrun, use thinwire train "
            f"{out / DATA_FOLDER} --out {out} --resume"
        )
    if not (resume and (out / ABOUT_FILE).exists()):
        _begin(run, texts, out, options, mix_with, step)
    folder = RunFolder.open(out)
    start(out / DATA_FOLDER, out, folder.config, resume=True)
    about = _read_about(out)
    account = _account(load(out, device=options.device, threads=options.threads or None), about)
    if folder.config.model.frozen:
        _leave_layers(out, about)
    about |= {"after": account.to_json()}
    (out / ABOUT_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return account


def _begin(
    run: Path,
    texts: Sequence[str],
    out: Path,
    options: AdaptOptions,
    mix_with: str | None,
    step: int | None,
) -> None:
    """Phases 1 to 4."""
    refuse_existing(out)
    base = load(run, step, device="cpu", threads=options.threads or None)
    config, tokenizer = base.run.config, base.tokenizer
    if options.method == "layers":
        _refuse_layers(base, out)

    text = Text.read(texts, options.valid)
    old = find_old(base.run, mix_with, tokenizer)
    if mix_with is None and options.mix_ratio and old.source is None:
        raise UserError(
            f"there is no old text to mix: {run} was trained on {base.run.data}, which is not "
            "there any more; name it with --mix"
        )
    ratio = _ratio(options, has_old=old.source is not None)

    words = NewWords([], [])
    grown, tokenizer_json = tokenizer, base.run.tokenizer_file.read_text(encoding="utf-8")
    if options.new_words:
        if config.loss.kind == "adaptive":
            raise UserError(
                "the adaptive loss cuts its vocabulary by frequency, so no words can be added to it"
            )
        known = require_words(tokenizer)
        words = NewWords.choose(text.unknown_words(known), options.new_words)
        if len(words):
            tokenizer_json = words.tokenizer_json(known)
            grown = Tokenizer.parse(tokenizer_json, "the tokenizer")

    new_ids = encode(grown, text.train)
    _require_something_to_learn(new_ids, grown, config.data.length)
    mixed = mix(new_ids, old.train, ratio, eos_id=grown.eos_id, seed=options.seed)
    pass_tokens = len(mixed) / num_passes(new_ids, old.train, ratio)
    tuned = settings(config, options, len(mixed), pass_tokens)
    _say(text, new_ids, ratio, old.source, words)

    valid_ids = encode(grown, text.valid)
    before = measure(base.model, tokenizer, encode(tokenizer, text.valid), config.data)
    old_before = measure(base.model, tokenizer, old.valid.ids, config.data, OLD_TOKENS)
    assert before is not None
    parameters = {name: p.detach() for name, p in base.model.by_name().items()}
    optimizer: dict[str, Any] = {}
    with suppress(UserError):  # a step whose optimiser state is missing can be adapted too
        optimizer = Checkpoints(run).load(base.loaded_step).open("optimizer")
    if len(words):
        assert tokenizer.unk_id is not None
        parameters = words.extend_parameters(parameters, tokenizer.unk_id)
        optimizer = words.extend_optimizer(
            optimizer, tokenizer.vocab_size, config.optim.initial_accumulator
        )
    about = {
        "base": str(run.absolute()),
        "step": base.loaded_step,
        "checksum": parameters_checksum(Checkpoints(run).load(base.loaded_step)),
        "method": options.method,
        "texts": [str(name) for name in texts],
        "mix": old.source if ratio else None,
        "mix_ratio": ratio,
        "new_words": len(words),
        "before": {"new": asdict(before), "old": old_before and asdict(old_before)},
    }
    with new_run(out) as folder:
        splits = {
            "train": Split(mixed),
            "valid": Split.of_lines(valid_ids, text.valid),
            "test": old.valid,
        }
        # The adaptive loss orders words by the counts that it was trained with: keep these.
        adaptive = config.loss.kind == "adaptive"
        counts = base.run.counts_V().tolist() if adaptive else None
        write_data(folder / DATA_FOLDER, tokenizer_json, grown, splits, counts)
        if options.method == "layers":
            about |= _root(base, run)
            link_or_copy(_frozen_file(base, run), folder / FROZEN_FILE)
            adapters: AdapterPlaces = "both" if options.input_layers else "output"
            if config.model.adapters != "none":
                adapters = config.model.adapters
            frozen = str(out.absolute() / FROZEN_FILE)
            tuned = replace(tuned, model=replace(tuned.model, adapters=adapters, frozen=frozen))
        else:
            tuned = replace(tuned, model=replace(tuned.model, frozen=""))
        write_run(folder, out, tuned, parameters, optimizer, about)


def _ratio(options: AdaptOptions, *, has_old: bool) -> float:
    if not has_old:
        return 0.0
    if options.mix_ratio is not None:
        return options.mix_ratio
    return DEFAULT_MIX_RATIO[options.method]


def _require_something_to_learn(ids: Ids, tokenizer: Tokenizer, length: int) -> None:
    if len(ids) < length:
        raise UserError(
            f"the new text has {len(ids)} tokens to train on, fewer than one sequence of {length}: "
            "give it more text"
        )
    known = ids[ids != tokenizer.eos_id]
    if tokenizer.unk_id is not None:
        known = known[known != tokenizer.unk_id]
    if not len(known):
        raise UserError(
            "the new text has no word that the model knows, so there is nothing to learn from it; "
            "--new-words N adds words"
        )


def _refuse_layers(base: TrainedModel, out: Path) -> None:
    """Raises UserError: layers cannot be trained, or the base has an adapter named as `out`."""
    if base.run.config.loss.kind == "adaptive":
        raise UserError(
            "the adaptive loss has no output biases to train beside the layers: use --method "
            "continue"
        )
    if AdapterFile.path(base.run.path, out.name).exists():
        raise UserError(
            f"{base.run.path} has an adapter {out.name!r} already: give --out another name, or "
            f"remove {AdapterFile.path(base.run.path, out.name)}"
        )


def _frozen_file(base: TrainedModel, run: Path) -> Path:
    if base.run.config.model.frozen:
        return Path(base.run.config.model.frozen)
    return Checkpoints(run).load(base.loaded_step).path / MODEL_FILE


def _root(base: TrainedModel, run: Path) -> dict[str, Any]:
    """If `run` has layers itself: the run with its frozen parameters, which gets the new ones."""
    if not base.run.config.model.frozen:
        return {}
    about = _read_about(run)
    return {name: about[name] for name in ("base", "step", "checksum")}


def _read_about(run: Path) -> dict[str, Any]:
    file = run / ABOUT_FILE
    try:
        about = read_json(file)
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error})") from None
    if not (isinstance(about, dict) and about.keys() >= {"base", "step", "checksum"}):
        raise UserError(f"{file} is damaged: base, step or checksum is missing")
    return about


def _leave_layers(out: Path, about: dict[str, Any]) -> None:
    """Copy the best layers into the folder of the base run, under the name of the new run."""
    base = Path(about["base"])
    saved = Checkpoints(out).load("best")
    adapters = RunFolder.open(out).config.model.adapters
    layers = AdapterFile(saved.open("model"), adapters, about["step"], about["checksum"])
    try:
        path = layers.save(base, out.name)
    except OSError as error:
        print_line(
            f"The layers could not be put beside {base} ({error.strerror}); {out} has them.",
        )
        return
    print_line(
        f"The layers are in {path} ({path.stat().st_size / 1e6:.2f} MB) too: --adapter {out.name} "
        f"takes them with {base}.",
    )


def _account(adapted: TrainedModel, about: dict[str, Any]) -> Account:
    corpus = Corpus.open(adapted.run.path / DATA_FOLDER)
    data, tokenizer = adapted.run.config.data, adapted.tokenizer

    def change(name: str, split: str, max_tokens: int = 0) -> Change | None:
        before: Measured | None = measured_from(about["before"][name])
        after = measure(adapted.model, tokenizer, corpus.ids(split), data, max_tokens)
        return None if before is None or after is None else Change(before, after)

    new = change("new", "valid")
    assert new is not None
    return Account(new, change("old", "test", OLD_TOKENS))


def _say(text: Text, new_ids: Ids, ratio: float, source: str | None, words: NewWords) -> None:
    mixed = f"{ratio:g} tokens of {source} for each of its own" if ratio else "nothing"
    sentence = (
        f"New text: {len(text.train):,} lines, {len(new_ids):,} tokens to train on, "
        f"{len(text.valid):,} lines held out; mixed with {mixed}"
    )
    if len(words):
        sentence += f"; {len(words):,} new words"
    print_line(f"{sentence}.")
