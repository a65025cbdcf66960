from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as HF

from thinwire.data.prepare import prepare
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError

TOKENS = "<blk> 0\n<sos/eos> 1\n<unk> 2\n▁the 3\nS 4\n▁cat 5\n#0 6\n"
WORDS = "<eps> 0\n<SPOKEN_NOISE> 1\ncat 2\nthe 3\n#0 4\n<s> 5\n</s> 6\n"


def prepared(tmp_path: Path, table: str, text: str) -> tuple[list[int], Tokenizer]:
    """The training ids and the tokenizer of a data folder."""
    (tmp_path / "table.txt").write_text(table, encoding="utf-8")
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = str(tmp_path / "table.txt")
    corpus = prepare(
        [str(tmp_path / "text.txt")],
        out=tmp_path / "data",
        tokenizer=tokenizer,
        valid=0,
        test=0,
        num_processes=1,
    )
    return corpus.ids("train").tolist(), Tokenizer.load(corpus.tokenizer_file)


def test_tokens_of_k2(tmp_path: Path) -> None:
    ids, tokenizer = prepared(tmp_path, TOKENS, "▁the ▁cat S\n\n▁dog ▁cat\n")
    assert ids == [3, 5, 4, 1, 1, 2, 5, 1]
    assert (tokenizer.vocab_size, tokenizer.unk_id, tokenizer.eos_id) == (7, 2, 1)
    assert [tokenizer.token(id) for id in (0, 1, 6)] == ["<blk>", "<sos/eos>", "#0"]


def test_words_of_kaldi(tmp_path: Path) -> None:
    ids, tokenizer = prepared(tmp_path, WORDS, "the cat\nthe  dog\t\n")
    assert ids == [3, 2, 6, 3, 1, 6]
    assert (tokenizer.vocab_size, tokenizer.unk_id, tokenizer.eos_id) == (7, 1, 6)


def test_symbols_without_text_cannot_be_spelt(tmp_path: Path) -> None:
    ids, _ = prepared(tmp_path, WORDS, "the <eps> #0 <s> </s> cat\n")
    assert ids == [3, 1, 1, 1, 1, 2, 6]


def test_hf_tokenizers_loads_it(tmp_path: Path) -> None:
    prepared(tmp_path, WORDS, "the cat\n")
    theirs = HF.from_file(str(tmp_path / "data/tokenizer.json"))
    assert theirs.encode("the dog cat").ids == [3, 1, 2, 6]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("<unk> 0\n</s> 1\na b 2\n", "line 3 of .* is 'a b 2', and should be a symbol and its id"),
        ("<unk> 0\n</s> 1\na -2\n", "should be a symbol and its id"),
        ("<unk> 0\n</s> 1\n<unk> 2\n", "line 3 of .* holds '<unk>' again"),
        ("<unk> 0\n</s> 1\na 1\n", "several symbols the same id"),
        ("a 0\n</s> 1\n", "no symbol for unknown text"),
        ("a 0\n<unk> 1\n", "no token that can end a line"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, table: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        prepared(tmp_path, table, "a\n")
    assert not (tmp_path / "data").exists()


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "text.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"none of a tokenizer.json, a SentencePiece model"):
        prepare([str(tmp_path / "text.txt")], out=tmp_path / "d", tokenizer=str(tmp_path / "x.bin"))
