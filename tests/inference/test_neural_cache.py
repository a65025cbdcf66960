"""The neural cache against a reference that counts votes token by token."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch

from thinwire.cli.app import main
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.inference import neural_cache as module
from thinwire.inference import score
from thinwire.inference.neural_cache import History, NeuralCache, mixed
from thinwire.runs import evaluation

CACHE = NeuralCache(size=30, theta=0.7, weight=0.2)


def votes(hidden: list[list[float]], words: list[int], t: int, size: int, theta: float) -> dict:
    """exp(theta h_t h_i) of the last `size` positions before t, added up by word."""
    found: dict[int, float] = {}
    for i in range(max(0, t - size), t):
        vote = exp(theta * sum(a * b for a, b in zip(hidden[t], hidden[i], strict=True)))
        found[words[i]] = found.get(words[i], 0.0) + vote
    return found


@pytest.mark.parametrize("cuts", [[40], [1, 39], [13, 13, 14]])
@pytest.mark.parametrize("tile", [3, 128])
def test_votes(cuts: list[int], tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_POSITIONS", tile)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(40, 3, generator=generator)
    words = torch.randint(0, 5, (40,), generator=generator)
    history = History(7)
    found = torch.cat(
        [
            history.look_up(h, y, [0.5])[0]
            for h, y in zip(hidden.split(cuts), words.split(cuts), strict=True)
        ]
    )
    assert found[0].isnan()
    for t in range(1, 40):
        of = votes(hidden.tolist(), words.tolist(), t, 7, 0.5)
        p = of.get(int(words[t]), 0.0) / sum(of.values())
        assert float(found[t].exp()) == pytest.approx(p, rel=1e-4)
    assert history.hidden_PD is not None and len(history.hidden_PD) == 7  # memory is bounded


def test_a_mixture() -> None:
    plain = torch.tensor([0.1, 0.1, 0.1], dtype=torch.float64).log()
    cache = torch.tensor([0.5, 0.0, float("nan")]).log()
    assert mixed(plain, cache, 0.2).exp().tolist() == pytest.approx([0.18, 0.08, 0.1])
    assert mixed(plain, cache, 0.0) is plain


@pytest.mark.parametrize(
    ("kind", "context"), [("lstm", "text"), ("lstm", "line"), ("transformer", "text")]
)
def test_an_evaluation(
    trained, toy_data: Path, kind: str, context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "NUM_STREAMS", 1)
    model = trained(kind=kind, context=context)
    ids, eos = Corpus.open(toy_data).ids("valid")[:200], model.tokenizer.eos_id
    plain = model.evaluate(ids)
    found = model.evaluate_cached(ids, CACHE)
    assert model.evaluate(ids) == plain  # to the bit
    assert model.evaluate_cached(ids, NeuralCache(weight=0.0)).nats == pytest.approx(plain.nats)
    if kind == "lstm":
        words, inputs, hidden, expected, state = ids.tolist(), [eos, *ids.tolist()], [], 0.0, None
        for t, word in enumerate(words):
            state = None if context == "line" and inputs[t] == eos else state
            h_11D, state = model.model.hidden(torch.tensor([[inputs[t]]]), state)
            hidden.append(h_11D[0, 0].tolist())
            p = float(model.model.output.distribution(h_11D[0])[0, word].exp())
            of = votes(hidden, words, t, 30, 0.7)
            if of:
                p = 0.8 * p + 0.2 * of.get(word, 0.0) / sum(of.values())
            expected -= log(p)
        assert found.nats == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(evaluation, "CHUNK_TOKENS", 5)
    monkeypatch.setattr(evaluation, "CHUNK_POSITIONS", 20)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 5)
    assert model.evaluate_cached(ids, CACHE).nats == pytest.approx(found.nats, rel=1e-5)


def test_the_command(trained, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(trained().run.path)

    def found(*flags: str) -> dict:
        assert main(["eval", run, "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    plain, cached = found(), found("--cache", "50")
    assert {key: cached[key] for key in plain} == plain
    assert np.isfinite(cached["cache_ppl"]) and cached["cache_ppl"] != plain["ppl"]
    for flags in (
        ["--cache", "0"],
        ["--cache-theta", "1"],
        ["--cache", "5", "--cache-lambda", "1"],
        ["--cache", "5", "--cache-theta", "sharp"],
    ):
        assert main(["eval", run, *flags]) == 2


def test_auto_is_the_best_of_the_grid(trained, toy_data: Path, capsys) -> None:
    model = trained()
    ids, data = Corpus.open(toy_data).ids("valid")[:300], model.run.config.data
    eos, thetas, weights = model.tokenizer.eos_id, (0.2, 2.0), (0.05, 0.3)
    best = module.tuned(model.model, ids, 30, thetas, weights, eos_id=eos, data=data)
    nats = {
        (theta, weight): model.evaluate_cached(
            ids, NeuralCache(size=30, theta=theta, weight=weight)
        ).nats
        for theta in thetas
        for weight in weights
    }
    assert (best.theta, best.weight) == min(nats, key=lambda setting: nats[setting])
    run, text = str(model.run.path), "--text"
    flags = ["--cache", "30", "--cache-theta", "auto", "--cache-lambda", "0.2"]
    book = toy_data.parent / "short.txt"
    book.write_text("The cat sees the dog.\n")
    assert main(["eval", run, text, str(book), *flags, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["cache_theta"] in module.THETAS and found["cache_lambda"] == 0.2
    assert f"theta {found['cache_theta']:g}, lambda 0.2" in captured.err
    assert main(["eval", run, *flags]) == 2
    assert "which is what is measured here" in " ".join(capsys.readouterr().err.split())


def test_bad_settings() -> None:
    for settings in ({"size": 0}, {"theta": -1.0}, {"theta": float("nan")}, {"weight": 1.0}):
        with pytest.raises(UserError, match="the cache's"):
            NeuralCache(**settings)


def test_lines_remember_those_before(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(context="line")
    lines = ["The cat sees the dog.", "", "dog " * 70, "The birdlet hears the cat."]
    ids = np.concatenate(model.tokenizer.encode_lines(lines))
    expected = model.evaluate_cached(ids, CACHE).nats
    for size in (1, 2, 1000):
        monkeypatch.setattr(score, "CACHE_LINES", size)
        found = list(model.score_lines_cached(lines, CACHE))
        assert -sum(cached.logprob for _, cached in found) == pytest.approx(expected, rel=1e-5)
        for (plain, cached), line in zip(found, lines, strict=True):
            assert plain.logprob == pytest.approx(model.score(line).logprob, rel=1e-5)
            assert cached.num_tokens == plain.num_tokens


def test_the_command_that_scores(trained, tmp_path: Path, capsys) -> None:
    model, text = trained(), tmp_path / "text.txt"
    lines = ["The cat sees the dog.", "The dog sees the cat."]
    text.write_text("\n".join(lines))
    flags = ["--cache", "30", "--cache-theta", "0.7", "--cache-lambda", "0.2"]
    assert main(["score", str(model.run.path), str(text), *flags, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["score", str(model.run.path), str(text), *flags]) == 0
    columns = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = list(model.score_lines_cached(lines, CACHE))
    assert len(found) == len(columns) == 2
    for record, fields, (plain, cached) in zip(found, columns, expected, strict=True):
        assert record["logprob"] == plain.logprob
        assert record["logprob_cache"] == cached.logprob
        assert fields[3] == f"{cached.logprob:.6f}"
    assert main(["score", str(model.run.path), str(text), "--cache-theta", "1"]) == 2
