"""SentencePiece models against the `sentencepiece` package, on odd text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from thinwire.data.prepare import prepare
from thinwire.data.sentencepiece import read_sentencepiece
from thinwire.data.tokenizers import Tokenizer, ending_lines
from thinwire.errors import UserError

sentencepiece = pytest.importorskip("sentencepiece")

ODD = [
    "", "   ", " a  b ", "the cat sees", "▁▁a", "the▁cat▁", "<s>", "</s>", "<unk>", "a</s>b",
    "<0x41>", "<0x0A>", "<sos/eos>", "<x>", "a<x>b<x> c", "foo bar", "foo  bar", "\t tab\tx",
    "\u200bzero", "\u200b", "\u00a0nbsp", "ﬁne Ａ①", "e\u0301 é A\u0300\u0301", "日本語 ｶﾞ한국어",
    "👨‍👩‍👧 🇩🇪", "\ufeffbom", "\x01\x7f", "ẛ̣ q̣̇", "İI", "ａ　ｂ", "x\u2028y", "…", "a" * 300,
    "---- --- -----", "......", "ⅷ ㌀ ﷺ",
]  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram"},
    "unigram with bytes": {
        "model_type": "unigram",
        "byte_fallback": True,
        "user_defined_symbols": ["<x>", "foo bar"],
    },
    "bpe": {"model_type": "bpe", "control_symbols": ["<ctrl>"]},
    "bpe with bytes": {"model_type": "bpe", "byte_fallback": True},
    "as icefall trains them": {
        "model_type": "unigram",
        "user_defined_symbols": ["<blk>", "<sos/eos>"],
        "unk_id": 2,
        "bos_id": -1,
        "eos_id": -1,
    },
    "as it is": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    },
    "folded": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf"},
}

Models = Callable[[str], Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A trained `.model` of each kind."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    random = Random(1)
    words = ["the", "cats", "see", "dogs", "walking", "---", "--", "-", "....", "ﬁne", "Unter", "é"]
    text = folder / "text.txt"
    lines = [" ".join(random.choices(words, k=8)) for _ in range(300)]
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @cache
    def make(kind: str) -> Path:
        prefix = folder / kind.replace(" ", "-")
        options = KINDS[kind]
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(prefix),
            vocab_size=300 if options.get("byte_fallback") else 60,
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
        return prefix.with_suffix(".model")

    return make


def random_texts(seed: int, number: int) -> list[str]:
    random = Random(seed)
    alphabet = [*"abcdeghiklnorstuw     ACU.-<>/", "▁", "\u0301", "é", "ﬁ", "\u200b", "日", "👨"]
    alphabet += ["\u3000", "\t", "<x>", "<s>", "</s>", "<0x41>", "foo bar", "--", "①"]
    return ["".join(random.choices(alphabet, k=random.randrange(40))) for _ in range(number)]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_sentencepiece(models: Models, kind: str) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(models(kind)))
    content = read_sentencepiece(models(kind))
    ours = Tokenizer.parse(ending_lines(content, kind), kind)
    assert ours.vocab_size == theirs.vocab_size()
    assert [ours.token(id) for id in range(ours.vocab_size)] == [
        theirs.id_to_piece(id) for id in range(ours.vocab_size)
    ]
    assert ours.unk_id == theirs.unk_id()
    texts = [*ODD, *random_texts(1, 1500)]
    if kind == "as icefall trains them":  # their end is a piece that a text may spell, ours is not
        assert ours.encode("<sos/eos>")[-1] == ours.unk_id
        texts = [text for text in texts if "<sos/eos>" not in text]
    found = [ids.tolist() for ids in ours.encode_lines(texts)]
    assert found == [[*theirs.encode(text), ours.eos_id] for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_back_to_text(models: Models, kind: str) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(models(kind)))
    ours = Tokenizer.parse(ending_lines(read_sentencepiece(models(kind)), kind), kind)
    for text in ("the cats see", "walking - dogs"):
        ids = theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)


def test_prepare_keeps_the_ids(models: Models, book: Path, tmp_path: Path) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(models("unigram with bytes")))
    model = str(models("unigram with bytes"))
    corpus = prepare(
        [str(book)], out=tmp_path / "data", tokenizer=model, valid=0, test=0, num_processes=1
    )
    lines = book.read_text(encoding="utf-8").splitlines()
    expected = [id for line in lines for id in [*theirs.encode(line), theirs.eos_id()]]
    assert corpus.ids("train").tolist() == expected
    assert corpus.meta.vocab_size == theirs.vocab_size()
    assert Tokenizer.load(corpus.tokenizer_file).encode(lines[0]) == theirs.encode(lines[0])


def test_a_damaged_model_is_refused(models: Models, tmp_path: Path) -> None:
    data = models("bpe").read_bytes()
    broken = tmp_path / "broken.model"
    broken.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="no SentencePiece model, or it is damaged"):
        read_sentencepiece(broken)


def test_words_as_pieces_are_refused(tmp_path: Path, models: Models) -> None:
    text = models("bpe").parent / "text.txt"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), model_type="char", vocab_size=30,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(UserError, match="kind word or char"):
        read_sentencepiece(tmp_path / "m.model")
