from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .conftest import Trained
from .stand_ins import LM, adapter


def request(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    return adapter(monkeypatch, "lm_eval", "lm_eval.api.model", LM=LM)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_continuations(trained: Trained, kind: str, lm_eval: Any) -> None:
    model = trained(kind=kind)
    lm = lm_eval.HarnessLM(model)
    greedy = model.next("the cat")[0].word
    asked = [
        request("the cat", " sees a"),
        request("", "the cat"),
        request("the cat", f" {greedy}"),
    ]
    (first, _), (second, _), (third, is_greedy) = lm.loglikelihood(asked)
    expected = float(model.logprobs("the cat", ["sees"])[0] + model.logprobs("the cat sees", ["a"]))
    assert first == pytest.approx(expected, rel=1e-5)
    start = float(model.logprobs("", ["the"])[0] + model.logprobs("the", ["cat"])[0])
    assert second == pytest.approx(start, rel=1e-5)
    assert third == pytest.approx(model.next("the cat")[0].logprob, rel=1e-5)
    assert is_greedy
    unlikely = model.next("the cat", k=model.model.vocab_size, words_only=True)[-1].word
    assert not lm.loglikelihood([request("the cat", f" {unlikely}")])[0][1]


def test_whole_texts(trained: Trained, lm_eval: Any) -> None:
    for context in ("text", "line"):
        model = trained(context=context)
        lm = lm_eval.HarnessLM(model)
        one, two, empty = lm.loglikelihood_rolling(
            [request("the cat sees"), request("the cat\nsees"), request("")]
        )
        eos_id = model.tokenizer.eos_id
        prompts: list[tuple[str, str | int]] = [("", "the"), ("the", "cat"), ("the cat", "sees")]
        assert one == pytest.approx(chain_of(model, prompts), rel=1e-5)
        prompts = [("", "the"), ("the", "cat"), ("the cat", eos_id), ("the cat\n", "sees")]
        assert two == pytest.approx(chain_of(model, prompts), rel=1e-5)
        assert empty == 0.0


def chain_of(model: Any, prompts: list[tuple[str, str | int]]) -> float:
    return sum(float(model.logprobs(prompt, [word])[0]) for prompt, word in prompts)


def test_written_text_stops(trained: Trained, lm_eval: Any) -> None:
    model = trained()
    lm = lm_eval.HarnessLM(model)
    whole = model.generate("the cat", tokens=8, temperature=0).removeprefix("the cat")
    (found,) = lm.generate_until([request("the cat", {"until": ["\0"], "max_gen_toks": 8})])
    assert found == whole
    stop = whole.split()[1]
    (found,) = lm.generate_until([request("the cat", {"until": stop, "max_gen_toks": 8})])
    assert found == whole[: whole.index(stop)]


@pytest.mark.filterwarnings("ignore")  # theirs and those of what they import
def test_their_evaluator_takes_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    evaluator = pytest.importorskip("lm_eval.evaluator")
    from lm_eval.api.task import ConfigurableTask

    from thinwire.integrations.lm_eval import HarnessLM

    model = trained()
    ranked = model.next("the cat", k=model.model.vocab_size, words_only=True)
    likely, unlikely = ranked[0].word, ranked[-1].word
    docs = tmp_path / "docs.jsonl"
    rows = [{"text": "the cat", "choices": [likely, unlikely], "answer": n} for n in (0, 0, 1)]
    docs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = ConfigurableTask(
        config={
            "task": "next_word",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(docs)}, "cache_dir": str(tmp_path)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}],
        }
    )
    found = evaluator.simple_evaluate(model=HarnessLM(model), tasks=[task], bootstrap_iters=0)
    assert found["results"]["next_word"]["acc,none"] == pytest.approx(2 / 3)
