"""A trained run to new text, from outside and in Python."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import thinwire
from thinwire.cli.app import main
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.inference.evaluate import evaluate_split, evaluate_text
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.metrics import read_metrics
from thinwire.training.loop import Trainer, train

Adapt = Callable[..., Any]
FEW = ["--tokens", "2000", "--threads", "1"]


def final_model(run: Path) -> bytes:
    newest = Checkpoints(run).newest
    return (run / f"step-{newest}" / "model.safetensors").read_bytes()


def test_new_text_gets_better_and_the_account_is_that_of_eval(
    adapted: Adapt, tmp_path: Path, toy_run: Path
) -> None:
    before = {file: file.read_bytes() for file in toy_run.rglob("*") if file.is_file()}
    account = adapted("out")
    assert account.new.after.ppl < 0.6 * account.new.before.ppl
    found = evaluate_split(thinwire.load(tmp_path / "out"), None, "valid").evaluation
    assert (found.ppl, found.ppl_known) == (account.new.after.ppl, account.new.after.ppl_known)
    assert found.tokens_unknown == account.new.after.tokens_unknown > 0
    old = evaluate_split(thinwire.load(toy_run), None, "valid").evaluation
    assert account.old.before.ppl == old.ppl
    old_after = evaluate_split(thinwire.load(tmp_path / "out"), None, "test").evaluation
    assert account.old.after.ppl == old_after.ppl
    assert {file: file.read_bytes() for file in toy_run.rglob("*") if file.is_file()} == before


def test_step_0_is_the_old_model_and_the_best_is_kept(
    adapted: Adapt, tmp_path: Path, toy_run: Path
) -> None:
    account = adapted("out", lr=1e-30, row_lr=1e-30, tokens=100)
    assert account.new.after == account.new.before and account.old.after == account.old.before
    best = thinwire.load(tmp_path / "out")
    assert best.loaded_step == 0
    text = "The cat sees the dog."
    assert best.score(text) == thinwire.load(toy_run).score(text)


def test_patience_ends_it(adapted: Adapt, tmp_path: Path) -> None:
    adapted("out", lr=1e-30, row_lr=1e-30, tokens=40_000, patience=2)
    end = read_metrics(tmp_path / "out")[-1]
    assert end["reason"].startswith("no new best in") and end["tokens"] < 40_000
    valid = [line for line in read_metrics(tmp_path / "out") if line["event"] == "valid"]
    assert len(valid) in (2, 3)  # the final state counts too


def test_new_words(adapted: Adapt, tmp_path: Path, toy_run: Path) -> None:
    account = adapted("out", new_words=2)
    assert account.new.after.tokens_unknown < account.new.before.tokens_unknown
    old, new = thinwire.load(toy_run), thinwire.load(tmp_path / "out")
    assert new.tokenizer.words[: old.tokenizer.vocab_size] == old.tokenizer.words
    assert new.tokenizer.vocab_size == old.tokenizer.vocab_size + 2
    corpus = Corpus.open(tmp_path / "out" / "data")
    assert corpus.meta.counts[-1] > 0 and len(corpus.meta.counts) == new.model.vocab_size
    assert new.run.counts_V().tolist() == corpus.meta.counts
    word = new.tokenizer.words[-1]
    assert new.score(f"the {word}").num_unknown == 0
    rows = [t["embedding.weight"] for t in (
        load_file(tmp_path / "out" / f"step-{Checkpoints(tmp_path / 'out').newest}"
                  / "model.safetensors"),
        load_file(toy_run / f"step-{old.loaded_step}" / "model.safetensors"),
    )]  # fmt: skip
    V = old.model.vocab_size
    moved = (rows[0][:V] - rows[1]).norm(dim=1)
    moved_new = (rows[0][V:] - rows[1][old.tokenizer.unk_id]).norm(dim=1)
    assert moved_new.min() > moved.median()  # new rows learn faster


def test_new_words_keep_the_rows_of_n_grams(
    adapted: Adapt, toy_data: Path, tiny: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    train(toy_data, base, tiny(run={"tokens": 560}, model={"ngrams": 3, "ngram_rows": 100}))
    rows = thinwire.load(base).model.by_name()["ngrams.weight"]
    adapted("out", base=base, new_words=2, lr=1e-30, row_lr=1e-30, tokens=500)
    assert torch.equal(thinwire.load(tmp_path / "out").model.by_name()["ngrams.weight"], rows)
    account = adapted("more", base=base, new_words=2)
    assert account.new.after.ppl < account.new.before.ppl


@pytest.mark.parametrize("method", ["continue", "layers"])
def test_it_is_a_run_like_any_other(
    method: str, new_text: Path, toy_run: Path, tmp_path: Path, capsys: Any
) -> None:
    base = Path(shutil.copytree(toy_run, tmp_path / "base"))
    out, again = tmp_path / "out", tmp_path / "again"
    words = ["--new-words", "1"] if method == "continue" else []
    arguments = [str(new_text), "--out", str(out), "--method", method, *words, *FEW, "--json"]
    assert main(["adapt", str(base), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"new", "old"}
    assert {"ppl", "ppl_known", "tokens_unknown"} <= set(found["new"]["before"])
    shutil.rmtree(base)  # it stands on its own
    assert main(["eval", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ppl"] == found["new"]["after"]["ppl"]
    assert main(["score", str(out), str(new_text)]) == 0
    assert main(["generate", str(out), "--tokens", "3"]) == 0
    assert (
        main(["train", str(out / "data"), "--out", str(out), "--resume", "--tokens", "2400"]) == 0
    )
    assert main(["adapt", str(out), str(new_text), "--out", str(again), *arguments[3:]]) == 0
    moved = Path(shutil.move(again, tmp_path / "moved"))
    assert thinwire.load(moved).score("the cats").num_tokens == 3


@pytest.mark.parametrize("settings", [{}, {"new_words": 2}, {"method": "layers"}])
def test_killed_and_resumed_equals_straight(
    settings: dict[str, Any], adapted: Adapt, tmp_path: Path
) -> None:
    adapted("straight", **settings)

    class Killed(BaseException):
        pass

    step = Trainer.train_step

    def stopped(self: Trainer) -> Any:
        if self.run.step == 5:
            self.save()
            raise Killed
        return step(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "train_step", stopped)
        adapted("run", **settings)
    adapted("run", resume=True)
    assert final_model(tmp_path / "run") == final_model(tmp_path / "straight")
    changed = [json.loads((tmp_path / n / "adapt.json").read_text()) for n in ("run", "straight")]
    assert changed[0]["after"] == changed[1]["after"]


@pytest.mark.parametrize("method", ["continue", "layers"])
def test_workers_equal_one(
    method: str, adapted: Adapt, together: Callable[..., list[Any]], tmp_path: Path
) -> None:
    adapted("one", method=method, batch=4, tokens=1120, patience=0)
    with pytest.MonkeyPatch.context() as patch:  # begun for two, and left at step 0
        patch.setattr("thinwire.adapt.adapt.start", lambda *args, **kwargs: None)
        adapted("two", method=method, batch=4, tokens=1120, patience=0, workers=2)
    config = RunConfig.from_dict(
        {k: v for k, v in thinwire.config.read_toml(tmp_path / "two/config.toml").items()
         if k != "corpus"}
    )  # fmt: skip
    assert config.data.batch == 2
    data, out = tmp_path / "two/data", tmp_path / "two"
    together(2, lambda m: train(data, out, config, resume=True, collective=m))
    found = [
        load_file(tmp_path / n / f"step-{Checkpoints(tmp_path / n).newest}" / "model.safetensors")
        for n in ("one", "two")
    ]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=1e-5), name


@pytest.mark.parametrize("exchange", ["async in processes", "periodic"])
def test_two_workers_learn(
    exchange: str,
    adapted: Adapt,
    together: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def in_threads(data: Path, out: Path, config: RunConfig, *, resume: bool) -> None:
        together(2, lambda m: train(data, out, config, resume=resume, collective=m))

    if exchange == "periodic":
        monkeypatch.setattr("thinwire.adapt.adapt.start", in_threads)
    account = adapted("out", exchange=exchange.split()[0], workers=2, tokens=3000)
    assert account.new.after.ppl < account.new.before.ppl


def test_old_text_as_text_and_none_at_all(
    toy_run: Path, adapted: Adapt, book: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(toy_run, tmp_path / "base"))
    config = base / "config.toml"
    content = thinwire.config.read_toml(config)["corpus"]["path"]
    config.write_text(config.read_text().replace(content, "/gone"))
    assert adapted("none", base=base, tokens=500).old is None
    with pytest.raises(UserError, match="no old text to mix"):
        adapted("asked", base=base, mix_ratio=1.0)
    account = adapted("text", base=base, mix_with=str(book), mix_ratio=2.0, tokens=500)
    assert account.old is not None and exp(1) < account.old.after.ppl < 1000
    unknown = Corpus.open(tmp_path / "text" / "data").meta.splits["train"].unknown
    assert unknown > 0


@pytest.mark.parametrize(
    ("content", "settings", "sentence"),
    [
        ("", {}, "there is no text in"),
        ("\n\n\n", {}, "there is no text in"),
        ("the cats\n", {}, "a single line"),
        ("the cats\nthe dogs\n", {}, "fewer than one sequence"),
        ("xyzzy plugh\n" * 100, {}, "no word that the model knows"),
        ("the cats\n" * 90, {"valid": 1.5}, "between 0 and 1"),
        ("the cats\n" * 90, {"valid": "nowhere.txt"}, "there is no file nowhere.txt"),
        ("the cats\n" * 90, {"mix_with": "nowhere"}, "there is no file nowhere"),
    ],
)
def test_refused(
    content: str, settings: dict[str, Any], sentence: str, adapted: Adapt, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(content)
    with pytest.raises(UserError, match=sentence):
        adapted("out", texts=[str(text)], **settings)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "other"}, "none of continue, layers"),
        ({"method": "layers", "new_words": 3}, "takes no --new-words"),
        ({"new_words": -1}, "--new-words is -1"),
        ({"mix_ratio": -0.5}, "--mix-ratio is -0.5"),
        ({"tokens": 0}, "--tokens is 0"),
        ({"batch": 1, "workers": 2}, "too small for 2 workers"),
    ],
)
def test_settings_that_make_no_sense(
    settings: dict[str, Any], sentence: str, adapted: Adapt
) -> None:
    with pytest.raises(UserError, match=sentence):
        adapted("out", **settings)


def test_an_existing_run_is_refused(adapted: Adapt, toy_run: Path, new_text: Path) -> None:
    with pytest.raises(UserError, match="already holds a run"):
        thinwire.load(toy_run).adapt(new_text, out=toy_run)


def test_in_python(toy_run: Path, new_text: Path, tmp_path: Path) -> None:
    model = thinwire.load(str(toy_run))
    better = model.adapt(str(new_text), out=tmp_path / "out", tokens=2000, threads=1)
    assert better.run.path == tmp_path / "out"
    held_out = str(new_text)
    assert (
        evaluate_text(better, held_out).evaluation.ppl
        < evaluate_text(model, held_out).evaluation.ppl
    )


def test_a_budget_in_seconds(adapted: Adapt, tmp_path: Path) -> None:
    adapted("out", tokens=None, seconds=0.05)
    assert read_metrics(tmp_path / "out")[-1]["reason"].startswith(
        ("seconds spent", "no new best in")
    )
    config = thinwire.config.read_toml(tmp_path / "out/config.toml")
    assert (config["run"]["seconds"], config["eval"]["every_tokens"]) == (0.05, 0)


def test_an_interrupt_while_step_0_is_written_leaves_nothing(
    adapted: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Checkpoints._write

    def interrupted(self: Checkpoints, *given: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        write(self, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "_write", interrupted)
    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        adapted("new")
    assert set(tmp_path.iterdir()) == before
