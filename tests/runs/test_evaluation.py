"""Perplexity against a few lines that compute it token by token."""

from __future__ import annotations

from itertools import pairwise
from math import exp, isnan, log

import numpy as np
import pytest
import torch

from thinwire.data.config import DataConfig
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.loss import full
from thinwire.loss.config import LossConfig
from thinwire.models.config import ModelConfig
from thinwire.runs import evaluation
from thinwire.runs.evaluation import Evaluation, Ids, evaluate

V, EOS, UNK = 30, 0, 1
WINDOW = 7


torch.set_num_threads(1)


def model(
    kind: str = "lstm", loss: str = "full", tied: bool = False, width: int = 8, ngrams: int = 0
) -> LanguageModel:
    """A model whose parameters are all random, so that context and words matter."""
    sizes = {"width": width, "layers": 2, "heads": 2, "ngrams": ngrams, "ngram_rows": 100}
    config = ModelConfig(kind=kind, tied=tied, **sizes)  # type: ignore[arg-type]
    made = LanguageModel(config, LossConfig(kind=loss), torch.ones(V), seed=1)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.7, generator=generator)
    return made


def text(num_tokens: int, seed: int = 0) -> Ids:
    """Random words; about every sixth is the end of a line, some lines are empty."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, V, num_tokens).astype(np.uint16)
    ids[rng.random(num_tokens) < 1 / 6] = EOS
    return ids


def evaluated(
    of: LanguageModel, ids: Ids, context: str = "text", max_tokens: int = 0
) -> Evaluation:
    data = DataConfig(length=WINDOW, context=context)  # type: ignore[arg-type]
    return evaluate(of, ids, eos_id=EOS, unk_id=UNK, data=data, max_tokens=max_tokens)


def nats(of: LanguageModel, inputs: list[int], target: int) -> float:
    """-ln p(target) after these inputs and nothing else."""
    hidden_1TD, _ = of.hidden(torch.tensor([inputs]), None)
    return -float(of.output.distribution(hidden_1TD[:, -1])[0, target])


def carried(of: LanguageModel, ids: Ids) -> list[float]:
    """Reference: each token after all those before it in its stream, and an end-of-line."""
    context = [EOS, *ids.tolist()]
    return [nats(of, context[:t], context[t]) for t in range(1, len(context))]


@pytest.mark.parametrize(("loss", "tied"), [("full", False), ("full", True), ("adaptive", False)])
def test_is_what_ten_lines_find(loss: str, tied: bool) -> None:
    width = 64 if loss == "adaptive" else 8
    of, ids = model(loss=loss, tied=tied, width=width), text(300)  # one stream
    expected = carried(of, ids)
    found = evaluated(of, ids)
    known = [n for n, id in zip(expected, ids, strict=True) if id != UNK]
    assert found.ppl == pytest.approx(exp(np.mean(expected)), rel=1e-5)
    assert found.ppl_known == pytest.approx(exp(np.mean(known)), rel=1e-5)
    assert found.tokens_scored == 300
    assert found.tokens_unknown == 300 - len(known) > 0
    assert found.bits_per_character(1000) == pytest.approx(sum(expected) / log(2) / 1000, rel=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
@pytest.mark.parametrize("context", ["text", "line"])
@pytest.mark.parametrize("ngrams", [0, 4])
def test_depends_on_no_batch_and_no_chunk(
    kind: str, context: str, ngrams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, ids = model(kind, ngrams=ngrams), text(1200)
    expected = evaluated(of, ids, context)
    for module, name, size in (
        (evaluation, "CHUNK_TOKENS", 5),
        (evaluation, "CHUNK_TOKENS", 1),
        (evaluation, "CHUNK_POSITIONS", 40),
        (evaluation, "CHUNK_POSITIONS", 1),
        (full, "TILE_POSITIONS", 3),
        (full, "TILE_WORDS", 7),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, size)
            assert evaluated(of, ids, context).nats == pytest.approx(expected.nats, rel=1e-6)


def test_n_grams_reach_over_lines_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CHUNK_TOKENS", 5)
    of, ids = model(ngrams=4), text(200)
    expected = sum(carried(of, ids))
    assert evaluated(of, ids).nats == pytest.approx(expected, rel=1e-5)
    assert of.ngrams is not None
    torch.nn.init.zeros_(of.ngrams.weight)
    assert evaluated(of, ids).nats != pytest.approx(expected, rel=1e-3)


def test_streams_are_cut_at_line_ends_and_start_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "MIN_STREAM_TOKENS", 50)
    of, ids = model(), text(220)
    ends = [0, *(np.flatnonzero(ids == EOS) + 1).tolist()]
    cuts = [0, *(next(end for end in ends if end >= 55 * i) for i in (1, 2, 3)), 220]
    expected = [n for a, b in pairwise(cuts) for n in carried(of, ids[a:b])]
    assert evaluated(of, ids).nats == pytest.approx(sum(expected), rel=1e-5)
    assert evaluated(of, ids).nats != pytest.approx(sum(carried(of, ids)), rel=1e-5)


def test_a_transformer_has_half_a_window_of_context() -> None:
    of, ids = model("transformer"), text(200)
    stride = WINDOW // 2
    expected, contexts = 0.0, []
    for t, target in enumerate(ids.tolist()):
        start = max(0, -(-(t + 1 - WINDOW) // stride)) * stride  # the first window that holds it
        inputs = ids[start - 1 : t].tolist() if start else [EOS, *ids[:t].tolist()]
        contexts.append(len(inputs))
        expected += nats(of, inputs, target)
    assert min(contexts[WINDOW:]) > WINDOW / 2
    assert max(contexts) == WINDOW
    assert evaluated(of, ids).nats == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("last_line_is_whole", [True, False])
def test_lines_start_afresh_where_training_did(last_line_is_whole: bool) -> None:
    of, ids = model(), text(200)
    ids[-1] = EOS if last_line_is_whole else 5
    ends = [0, *(np.flatnonzero(ids == EOS) + 1).tolist()]
    if not last_line_is_whole:
        ends.append(len(ids))
    expected = [n for a, b in pairwise(ends) for n in carried(of, ids[a:b])]
    assert len(expected) == 200
    assert evaluated(of, ids, "line").nats == pytest.approx(sum(expected), rel=1e-5)


@pytest.mark.parametrize("context", ["text", "line"])
def test_a_part_is_spread_over_the_text(context: str) -> None:
    of, ids = model(), text(20_000)
    ids[10_000:] = ids[:10_000]
    found = evaluated(of, ids, context, max_tokens=2000)
    assert found.tokens_scored == pytest.approx(2000, rel=0.15)
    assert found.ppl == pytest.approx(evaluated(of, ids, context).ppl, rel=0.1)


def test_progress_is_told() -> None:
    heard: list[int] = []
    data = DataConfig(length=WINDOW)
    evaluate(model(), text(1000), eos_id=EOS, unk_id=None, data=data, advance=heard.append)
    assert sum(heard) == 1000


def test_the_smallest_texts() -> None:
    of = model()
    with pytest.raises(UserError, match="no tokens"):
        evaluated(of, text(0))
    for ids in ([EOS], [5], [5, EOS], [UNK, UNK]):
        found = evaluated(of, np.array(ids, dtype=np.uint8))
        assert found.nats == pytest.approx(sum(carried(of, np.array(ids))), rel=1e-5)
    assert isnan(found.ppl_known)
