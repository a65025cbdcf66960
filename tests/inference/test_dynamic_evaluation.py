"""A model that learns from what it is measured on: no token is learned from before it is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from thinwire.cli.app import main
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.inference.dynamic_evaluation import DynamicEvaluation, Learner
from thinwire.runs.evaluation import logprobs


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "full", "tied": True, "context": "line"},
        {"kind": "transformer"},
        {"loss": "adaptive"},
        {"ngrams": 2},
    ],
    ids=str,
)
def test_scored_before_learned(trained, toy_data: Path, settings: dict[str, Any]) -> None:
    model = trained(**settings)
    before = {name: p.clone() for name, p in model.model.by_name().items()}
    ids, eos = Corpus.open(toy_data).ids("valid")[:120], model.tokenizer.eos_id
    spans, window = [(0, len(ids))], model.run.config.data.length
    learner = Learner(model.model, DynamicEvaluation(chunk_tokens=12))
    plain = torch.cat([p for p, *_ in logprobs(model.model, ids, spans, eos_id=eos, window=window)])
    pieces = [p for p, *_ in learner.logprobs(ids, spans, eos_id=eos, window=window)]
    found, first = torch.cat(pieces), len(pieces[0])
    assert len(pieces) > 3 and len(found) == len(plain) == len(ids)
    torch.testing.assert_close(found[:first], plain[:first], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[first:], plain[first:], rtol=1e-3)
    # What follows a token changes nothing of its score.
    changed = ids.copy()
    changed[60:] = changed[60:][::-1]
    learner = Learner(model.model, DynamicEvaluation(chunk_tokens=12))
    again = torch.cat([p for p, *_ in learner.logprobs(changed, spans, eos_id=eos, window=window)])
    torch.testing.assert_close(again[:60], found[:60], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in model.model.by_name().items())


def test_a_text_that_repeats_itself_is_learned(trained) -> None:
    model = trained()
    lines = ["The dog hears the birdlet and the cat sees it."] * 40
    ids = torch.cat([torch.as_tensor(x) for x in model.tokenizer.encode_lines(lines)]).numpy()
    plain, dynamic = model.evaluate_dynamic(ids, DynamicEvaluation())
    assert dynamic.ppl < 0.8 * plain.ppl
    assert plain.tokens_scored == dynamic.tokens_scored == len(ids)
    still, unmoved = model.evaluate_dynamic(ids, DynamicEvaluation(rate=0.0))
    assert unmoved.nats == pytest.approx(still.nats, rel=1e-6)
    _, held = model.evaluate_dynamic(ids, DynamicEvaluation(decay=1.0))
    assert held.nats == pytest.approx(plain.nats, rel=1e-6)
    scores = list(model.score_lines_dynamic(lines, DynamicEvaluation()))
    assert len(scores) == 40
    assert scores[0][1].logprob == pytest.approx(scores[0][0].logprob, rel=1e-5)
    assert scores[-1][1].logprob > scores[-1][0].logprob


def test_the_commands(trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, text = str(trained().run.path), tmp_path / "text.txt"
    text.write_text("The cat sees the dog.\nThe dog sees the cat.\n")

    def found(*command: str) -> list[dict]:
        assert main([*command, "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    plain = found("eval", run, "--text", str(text))[0]
    learning = found("eval", run, "--text", str(text), "--dynamic", "5")[0]
    assert {key: learning[key] for key in plain} == plain
    assert learning["dynamic_plain_ppl"] == pytest.approx(plain["ppl"], rel=1e-4)
    assert learning["dynamic_ppl"] != learning["dynamic_plain_ppl"]
    for flags, key in (
        (["--dynamic", "5"], "dynamic"),
        (["--average", "1"], "average"),
        (["--cache", "5", "--cache-theta", "auto"], "cache"),
    ):
        lines = found("score", run, str(text), *flags)
        assert len(lines) == 2 and all(f"logprob_{key}" in line for line in lines)
    for verb, *flags in (
        ("eval", "--dynamic-rate", "1"),
        ("eval", "--dynamic", "0"),
        ("score", "--dynamic", "5", "--dynamic-decay", "2"),
        ("score", "--dynamic", "5", "--cache", "5"),
        ("score", "--average", "1", "--tokens"),
        ("score", "--average", "1", "--adapter", "x"),
        ("score", "--average", "99"),
    ):
        assert main([verb, run, *([str(text)] if verb == "score" else []), *flags]) == 2


def test_bad_settings() -> None:
    for settings in ({"chunk_tokens": 0}, {"rate": float("nan")}, {"rate": -1.0}, {"decay": 1.5}):
        with pytest.raises(UserError, match="dynamic evaluation"):
            DynamicEvaluation(**settings)
