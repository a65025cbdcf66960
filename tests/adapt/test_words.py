"""New words share out the unknown word's probability and change nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import tokenizers
import torch

import thinwire
from thinwire.adapt.words import NewWords, require_words
from thinwire.data.tokenizers import Tokenizer, WordTokenizer
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.loss.config import LossConfig


def test_the_most_frequent_are_chosen() -> None:
    counts = Counter({"b": 4, "a": 4, "c": 9, "once": 1, "twice": 2})
    words = NewWords.choose(counts, 3)
    assert words.words == ["c", "a", "b"]
    assert words.shares_K == pytest.approx([9 / 21, 4 / 21, 4 / 21])
    assert NewWords.choose(counts, 99).words == ["c", "a", "b", "twice"]
    assert len(NewWords.choose(counts, 0)) == 0


@pytest.mark.parametrize("tied", [False, True])
def test_old_words_keep_their_probability(toy_run: Path, tied: bool) -> None:
    trained = thinwire.load(toy_run)
    unk = trained.tokenizer.unk_id
    assert unk is not None
    config = trained.run.config.model
    config = type(config)(**{**vars(config), "tied": tied})
    counts_V = trained.run.counts_V()
    old = LanguageModel(config, LossConfig(kind="full"), counts_V, seed=5)
    words = NewWords(["x", "y"], [0.5, 0.25])
    extended = words.extend_parameters({n: p.detach() for n, p in old.by_name().items()}, unk)
    counts = torch.cat([counts_V, torch.ones(2, dtype=counts_V.dtype)])
    new = LanguageModel(config, LossConfig(kind="full"), counts, seed=6)
    with torch.no_grad():
        for name, parameter in new.by_name().items():
            parameter.copy_(extended[name])
    inputs_BT = torch.tensor([[3, unk, 7, 1]])
    p_old = old.output.distribution(old.hidden(inputs_BT, None)[0][0]).exp()
    p_new = new.output.distribution(new.hidden(inputs_BT, None)[0][0]).exp()
    others = [i for i in range(len(counts_V)) if i != unk]
    assert torch.allclose(p_new[:, others], p_old[:, others], atol=1e-6)
    assert torch.allclose(p_new[:, -2], 0.5 * p_old[:, unk], atol=1e-6)
    assert torch.allclose(p_new[:, -1], 0.25 * p_old[:, unk], atol=1e-6)
    assert torch.allclose(p_new[:, unk], 0.25 * p_old[:, unk], atol=1e-6)


def test_the_tokenizer_grows_and_others_read_it(toy_run: Path) -> None:
    old = require_words(Tokenizer.load(toy_run / "tokenizer.json"))
    content = NewWords(["wombat", "heron"], [0.2, 0.1]).tokenizer_json(old)
    new = Tokenizer.parse(content, "it")
    assert isinstance(new, WordTokenizer) and new.words == [*old.words, "wombat", "heron"]
    line = "The wombat sees a heron and xyzzy."
    assert tokenizers.Tokenizer.from_str(content).encode(line).ids == [
        *new.encode(line),
        new.eos_id,
    ]
    assert old.vocab_size in new.encode(line)


def test_optimiser_state_grows_with_fresh_rows() -> None:
    state = {
        "rows.output.weight/sum": torch.tensor([3.0, 4.0]),
        "rows.output.weight/last_step": torch.tensor([1, 2], dtype=torch.int32),
        "rows.output.weight/step": torch.tensor(7),
        "blocks.body.x/exp_avg": torch.ones(2),
    }
    grown = NewWords(["x"], [0.5]).extend_optimizer(state, 2, 0.25)
    assert grown["rows.output.weight/sum"].tolist() == [3.0, 4.0, 0.25]
    assert grown["rows.output.weight/last_step"].tolist() == [1, 2, 7]
    assert grown["rows.output.weight/step"].item() == 7
    assert grown["blocks.body.x/exp_avg"].tolist() == [1.0, 1.0]


def test_bytes_have_no_unknown_words() -> None:
    from thinwire.data.tokenizer_json import bytes_tokenizer

    tokenizer = Tokenizer.parse(json.dumps(bytes_tokenizer()), "bytes")
    with pytest.raises(UserError, match="no unknown words"):
        require_words(tokenizer)
