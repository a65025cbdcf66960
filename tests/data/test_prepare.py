from __future__ import annotations

import errno
import gzip
import io
import json
import lzma
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import tokenizers as hf
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from thinwire.data import prepare as module
from thinwire.data import sources, spool
from thinwire.data.corpus import Corpus
from thinwire.data.encoders import WordEncoder
from thinwire.data.new_folder import new_folder
from thinwire.data.prepare import prepare
from thinwire.data.spool import read_tokens
from thinwire.data.tokenizer_json import EOS, UNK
from thinwire.data.tokenizers import Tokenizer, find_words
from thinwire.data.vocabulary import Tally
from thinwire.errors import UserError

SCRIPTS = [
    "The cat sat. It's a cat, isn't it?",
    "Кошка сидит на окне, кошка спит.",
    "القطة تجلس على النافذة، القطة نائمة.",
    "猫坐在窗台上。猫睡着了。",
    "🐱 sits 🐱‍👤, cafe\u0301 café",
    "",
    f"the {UNK} cat and {EOS} too",
]

Thinwire = Callable[..., CompletedProcess[str]]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def lines_of(corpus: Corpus, split: str) -> list[str]:
    """The lines of a split as the tokenizer puts them together."""
    text = Tokenizer.load(corpus.tokenizer_file).decode(corpus.ids(split).tolist())
    return text.split("\n")[:-1]


@pytest.fixture
def script_file(tmp_path: Path) -> Path:
    path = tmp_path / "scripts.txt"
    path.write_text("\n".join(SCRIPTS * 10) + "\n", encoding="utf-8")
    return path


def reference(train: list[str], valid: list[str], min_count: int) -> dict[str, object]:
    """What kind `word` must give, said in ten lines."""
    tokens = {
        split: [word for line in lines for word in [*find_words("word", line), EOS]]
        for split, lines in (("train", train), ("valid", valid))
    }
    counts = Counter(tokens["train"])
    special = (UNK, EOS)
    kept = {word: n for word, n in counts.items() if n >= min_count and word not in special}
    kept[EOS] = counts[EOS]
    kept[UNK] = counts.total() - sum(kept.values())
    words = sorted(kept, key=lambda word: (-kept[word], kept[word] == 0, word))
    ids = {word: id for id, word in enumerate(words)}
    found = {split: [ids.get(word, ids[UNK]) for word in tokens[split]] for split in tokens}
    return {"words": words, "counts": [kept[word] for word in words], **found}


@settings(max_examples=30)
@given(
    train=st.lists(st.text("ab é'\t,<unk>/s", max_size=20), min_size=1, max_size=30),
    valid=st.lists(st.text("abc ", max_size=9), min_size=1, max_size=5),
    min_count=st.integers(1, 3),
)
def test_data_folders_are_what_ten_lines_say(
    tmp_path_factory: pytest.TempPathFactory, train: list[str], valid: list[str], min_count: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name, lines in (("train.txt", train), ("valid.txt", valid)):
        (folder / name).write_text("".join(line + "\n" for line in [*lines, "b"]))
    corpus = prepare(
        [str(folder / "train.txt")],
        out=folder / "data",
        min_count=min_count,
        valid=str(folder / "valid.txt"),
    )
    expected = reference([*train, "b"], [*valid, "b"], min_count)
    tokenizer = Tokenizer.load(corpus.tokenizer_file)
    assert [tokenizer.token(id) for id in range(tokenizer.vocab_size)] == expected["words"]
    assert corpus.meta.counts == expected["counts"]
    for split, lines in (("train", train), ("valid", valid)):
        ids = corpus.ids(split).tolist()
        assert ids == expected[split]
        about = corpus.meta.splits[split]
        text = "".join(line + "\n" for line in [*lines, "b"])
        assert about.tokens == len(ids)
        assert about.unknown == ids.count(corpus.meta.unk_id)
        assert about.lines == len(lines) + 1
        assert about.characters == len(text)
        assert about.words == len(text.split())
    assert len(corpus.ids("test")) == 0


@pytest.mark.parametrize("kind", ["word", "space", "bpe", "bytes"])
def test_hf_tokenizers_gives_the_ids_of_the_folder(
    script_file: Path, tmp_path: Path, kind: str
) -> None:
    corpus = prepare(
        [str(script_file)],
        out=tmp_path / "data",
        tokenizer=kind,
        vocab_size=400 if kind == "bpe" else None,
        valid=0,
        test=0,
    )
    tokenizer = hf.Tokenizer.from_file(str(corpus.tokenizer_file))
    lines = SCRIPTS * 10
    assert [id for line in lines for id in tokenizer.encode(line).ids] == corpus.ids(
        "train"
    ).tolist()
    assert corpus.meta.counts == sorted(corpus.meta.counts, reverse=True)
    counted = np.bincount(corpus.ids("train"), minlength=corpus.meta.vocab_size)
    assert counted.tolist() == corpus.meta.counts
    assert corpus.meta.tokenizer == kind
    assert corpus.meta.dtype == ("uint16" if kind == "bpe" else "uint8")
    if kind in ("bpe", "bytes"):
        assert lines_of(corpus, "train") == lines
        assert corpus.meta.unk_id is None


@pytest.mark.parametrize("kind", ["word", "space", "bpe", "bytes"])
def test_processes_blocks_and_shards_change_nothing(
    book: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, object] = {"tokenizer": kind, "valid": 0.1}
    if kind == "bpe":
        options["vocab_size"] = 300
    alone = prepare([str(book)], out=tmp_path / "alone", num_processes=1, **options)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1000)
    monkeypatch.setattr("thinwire.data.recipes.SMALLEST_SHARD_TYPES", 1)
    monkeypatch.setattr("thinwire.data.recipes.TYPES_IN_MEMORY", 20)
    monkeypatch.setattr(module, "Tally", lambda folder: Tally(folder, types_in_memory=15))
    many = prepare([str(book)], out=tmp_path / "many", num_processes=2, **options)
    again = prepare([str(book)], out=tmp_path / "again", num_processes=1, **options)
    assert files(alone.path) == files(many.path) == files(again.path)


def test_every_way_to_give_a_text_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ("\n".join(SCRIPTS) + "\n") * 20
    folder = tmp_path / "in"
    folder.mkdir()
    ways = {
        "plain.txt": text.encode(),
        "windows.txt": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        "no-end.txt": text.encode()[:-1],
        "packed.gz": gzip.compress(text.encode()),
        "packed.xz": lzma.compress(text.encode()),
        "packed.zst": zstandard.ZstdCompressor().compress(text.encode()),
    }
    found = []
    for name, data in ways.items():
        (folder / name).write_bytes(data)
        found.append(files(prepare([str(folder / name)], out=tmp_path / f"{name}.data").path))
    for kind in ("word", "bpe"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        options = {"tokenizer": kind, "vocab_size": 300 if kind == "bpe" else None}
        piped = prepare(["-"], out=tmp_path / f"{kind}-piped", **options)
        read = prepare([str(folder / "plain.txt")], out=tmp_path / f"{kind}-read", **options)
        assert files(piped.path) == files(read.path)
    assert all(other == found[0] for other in found)


def test_a_line_longer_than_a_block_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text8"
    path.write_text("one two  three four " * 50 + "\nfive\n" + "six seven " * 30)
    for kind in ("word", "space", "bytes"):
        whole = prepare([str(path)], out=tmp_path / kind, tokenizer=kind, valid=0, test=0)
        with monkeypatch.context() as patch:
            patch.setattr(sources, "BLOCK_BYTES", 101)
            parts = prepare(
                [str(path)],
                out=tmp_path / f"{kind}-parts",
                tokenizer=kind,
                valid=0,
                test=0,
                num_processes=1,
            )
        assert files(whole.path) == files(parts.path)
        assert whole.meta.splits["train"].lines == 3


def test_fractions_divide_the_lines(book: Path, tmp_path: Path) -> None:
    corpus = prepare([str(book)], out=tmp_path / "data", tokenizer="bytes", valid=0.2, test=0.05)
    assert {name: split.lines for name, split in corpus.meta.splits.items()} == {
        "train": 1500,
        "valid": 400,
        "test": 100,
    }
    divided = [line for split in corpus.splits for line in lines_of(corpus, split)]
    assert sorted(divided) == sorted(book.read_text().splitlines())
    default = prepare([str(book)], out=tmp_path / "default")
    assert [split.lines for split in default.meta.splits.values()] == [1960, 20, 20]


def test_held_out_words_do_not_choose_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a b a b\n")
    (tmp_path / "valid.txt").write_text("c c c a\n")
    corpus = prepare(
        [str(tmp_path / "train.txt")], out=tmp_path / "data", valid=str(tmp_path / "valid.txt")
    )
    assert lines_of(corpus, "valid") == ["<unk> <unk> <unk> a"]
    assert corpus.meta.splits["valid"].unknown == 3
    assert corpus.meta.splits["test"].tokens == 0  # a file for one: the other is not cut off


def test_a_held_out_file_is_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("one", "two", "three"):
        (texts / f"{name}.txt").write_text(f"{name} {name}\n")
    corpus = prepare([str(texts)], out=tmp_path / "data", valid=str(texts / "two.txt"))
    assert lines_of(corpus, "train") == ["one one", "three three"]
    assert "two.txt is held out" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="nothing is left to train on"):
        prepare([str(texts / "two.txt")], out=tmp_path / "x", valid=str(texts / "t*.txt"))


def test_a_list_of_words_fixes_the_vocabulary(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("the\ncats\nwell-known\nunheard\n")
    corpus = prepare([str(book)], out=tmp_path / "data", vocab=tmp_path / "words.txt")
    tokenizer = Tokenizer.load(corpus.tokenizer_file)
    words = {tokenizer.token(id) for id in range(tokenizer.vocab_size)}
    assert words == {"the", "cats", "well-known", "unheard", UNK, EOS}
    assert "1 of the 4 words" in " ".join(capsys.readouterr().err.split())


def test_a_given_tokenizer_keeps_its_ids(book: Path, tmp_path: Path) -> None:
    for kind in ("word", "space", "bytes"):
        first = prepare([str(book)], out=tmp_path / kind, tokenizer=kind)
        other = tmp_path / "other.txt"
        other.write_text("dogs dogs dogs unheard\n" * 50)
        second = prepare(
            [str(other)], out=tmp_path / f"{kind}-2", tokenizer=str(first.tokenizer_file)
        )
        assert second.tokenizer_file.read_bytes() == first.tokenizer_file.read_bytes()
        assert second.meta.tokenizer == "file"
        tokenizer = Tokenizer.load(first.tokenizer_file)
        line = [*tokenizer.encode("dogs dogs dogs unheard"), tokenizer.eos_id]
        assert second.ids("train").tolist() == line * 48
        counts = np.bincount(second.ids("train"), minlength=tokenizer.vocab_size)
        assert second.meta.counts == counts.tolist()
        assert (second.meta.unk_id, second.meta.eos_id) == (tokenizer.unk_id, tokenizer.eos_id)


def test_a_tokenizer_of_others_keeps_its_ids(book: Path, tmp_path: Path) -> None:
    theirs = hf.Tokenizer(hf.models.WordPiece({"[UNK]": 0, "the": 1, "##s": 2, "cat": 3}))
    theirs.normalizer = hf.normalizers.Lowercase()
    theirs.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    theirs.add_special_tokens(["[SEP]"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    corpus = prepare([str(book)], out=tmp_path / "data", tokenizer=str(tmp_path / "tokenizer.json"))
    assert (corpus.meta.unk_id, corpus.meta.eos_id, corpus.meta.vocab_size) == (0, 4, 5)
    lines = book.read_text().splitlines()
    encoded = [id for line in theirs.encode_batch(lines) for id in [*line.ids, 4]]
    ids = np.concatenate([corpus.ids(split) for split in corpus.splits])
    assert Counter(ids.tolist()) == Counter(encoded)


def test_an_existing_folder_is_kept_or_replaced(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()  # an empty one may be filled
    first = files(prepare([str(book)], out=out).path)
    with pytest.raises(UserError, match="holds data already: --force replaces it"):
        prepare([str(book)], out=out, min_count=1)
    with pytest.raises(UserError, match="there is no text"):
        (tmp_path / "blank.txt").write_text(" \n\n")
        prepare([str(tmp_path / "blank.txt")], out=out, force=True)
    assert files(out) == first
    assert files(prepare([str(book)], out=out, min_count=7, force=True).path) != first
    with pytest.raises(UserError, match="is no data folder and not empty"):
        prepare([str(book)], out=tmp_path, force=True)
    with pytest.raises(UserError, match="is a file: give --out another name"):
        prepare([str(book)], out=book)
    with pytest.raises(UserError, match="/ cannot be replaced by a data folder"):
        prepare([str(book)], out=Path("/"))
    assert {path.name for path in tmp_path.iterdir()} == {"book.txt", "data", "blank.txt"}


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_fails_leaves_nothing(
    book: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    becomes: type[BaseException],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("thinwire.data.prepare.file_digest", fail)
    with pytest.raises(becomes):
        prepare([str(book)], out=tmp_path / "deep" / "data")
    assert list((tmp_path / "deep").iterdir()) == []


def test_words_of_a_shard(tmp_path: Path) -> None:
    spooler = spool.Spooler(
        lambda: WordEncoder("word", 99),
        tmp_path,
    )
    spooler(sources.Block("it", 1, b"a b\nb"))
    piece = spooler(sources.Block("it", 2, b" c\n"))
    assert read_tokens(piece.shard) == [EOS, "a", "b", "c"]
    assert piece.read_ids().tolist() == [3, 0]
    assert piece.read_lines().tolist() == [[2, 1, 3]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"valid": 1.5}, r"--valid 1\.5 is no file, and as a fraction it must be from 0 to below"),
        ({"test": "-0.1"}, r"--test -0\.1 is no file, and as a fraction"),
        ({"test": "nan"}, r"--test nan is no file, and as a fraction"),
        ({"valid": 0.5, "test": 0.5}, r"--valid 0\.5 and --test 0\.5 leave nothing to train on"),
        ({"valid": "gone.txt"}, r"there is no file gone\.txt"),
        ({"tokenizer": "wrod"}, "'wrod' is no tokenizer: choose word, space, bpe, bytes or"),
        ({"vocab_size": 2}, "a vocabulary of 2 is too small: with <unk> and </s> it needs 3"),
        ({"vocab_size": 0, "tokenizer": "bpe"}, "a vocabulary of 0 is too small for BPE"),
        ({"min_count": 0}, "--min-count is 0, and must be 1 or more"),
        ({"min_count": 2, "tokenizer": "bpe"}, "--min-count has no meaning with --tokenizer bpe"),
        ({"vocab_size": 9, "tokenizer": "bytes"}, "--vocab-size has no meaning with .* bytes"),
        ({"vocab": Path("x"), "min_count": 2}, "--min-count has no meaning with .* --vocab x"),
        ({"vocab": Path("gone")}, "the word list gone cannot be read: No such file"),
        ({"num_lines": 2}, "2 lines, too few to hold out 1 for validation and 1 for test"),
    ],
)
def test_refuses_in_a_sentence(
    book: Path, tmp_path: Path, options: dict[str, object], sentence: str
) -> None:
    if (num_lines := options.pop("num_lines", None)) is not None:
        book.write_text("a line\n" * num_lines)
    with pytest.raises(UserError, match=sentence):
        prepare([str(book)], out=tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "there is no text in bad.txt"),
        (b"\n \n\n", "there is no text in bad.txt"),
        (b"ab\0c\n" * 9, "bad.txt is no text file: there is a NUL byte in line 1"),
        (b"fine\n" * 9 + b"caf\xe9\n", "bad.txt is not UTF-8: line 10 holds the byte 0xe9"),
        (None, "there is no file bad.txt"),
    ],
)
def test_the_command_refuses_bad_text(
    thinwire: Thinwire, tmp_path: Path, data: bytes | None, sentence: str
) -> None:
    if data is not None:
        (tmp_path / "bad.txt").write_bytes(data)
    for options in ([], ["--tokenizer", "bpe"]):
        done = thinwire("prepare", "bad.txt", "--out", "data", *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert sentence in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert not [path for path in tmp_path.iterdir() if "data" in path.name]


def test_bad_text_is_found_in_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1000)
    path = tmp_path / "late.txt"
    path.write_bytes(b"a fine line\n" * 5000 + b"\xff\n")
    with pytest.raises(UserError, match=r"late\.txt is not UTF-8: line 5001 holds the byte 0xff"):
        prepare([str(path)], out=tmp_path / "data", num_processes=2)
    assert [found.name for found in tmp_path.iterdir()] == ["late.txt"]


def test_the_command(thinwire: Thinwire, book: Path, tmp_path: Path) -> None:
    done = thinwire("prepare", "book.txt", book, "--out", "deep/data", "--min-count", 3)
    assert (done.returncode, done.stdout) == (0, "")
    assert "3,920" in done.stderr  # lines to train on
    piped = thinwire("prepare", "-", "--out", "piped", stdin=book.read_text())
    assert piped.returncode == 0, piped.stderr
    meta = json.loads((tmp_path / "piped" / "meta.json").read_text())
    assert meta["fingerprint"] == Corpus.open(tmp_path / "piped").meta.fingerprint


def test_a_token_may_hold_any_character(tmp_path: Path) -> None:
    vocab = {UNK: 0, EOS: 1, "\0": 2, "a\nb": 3, "": 4, "bird": 5, "cat": 6}
    theirs = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token=UNK))
    theirs.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("bird cat\ncat dog\n")
    corpus = prepare(
        [str(tmp_path / "text.txt")],
        out=tmp_path / "data",
        tokenizer=str(tmp_path / "tokenizer.json"),
        valid=0,
        test=0,
    )
    assert corpus.ids("train").tolist() == [5, 6, 1, 6, 0, 1]


def test_a_literal_end_of_line_is_an_unknown_word(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a </s> a\n" * 4)
    corpus = prepare(
        [str(tmp_path / "text.txt")], out=tmp_path / "d", tokenizer="space", valid=0, test=0
    )
    tokenizer = Tokenizer.load(corpus.tokenizer_file)
    assert corpus.ids("train").tolist() == [*tokenizer.encode("a </s> a"), tokenizer.eos_id] * 4
    assert (corpus.meta.splits["train"].unknown, corpus.meta.counts) == (4, [8, 4, 4])


def test_what_a_killed_prepare_left_is_cleared_away(book: Path, tmp_path: Path) -> None:
    first = files(prepare([str(book)], out=tmp_path / "data").path)
    # Killed between its two renames, with the new folder still there.
    (tmp_path / "data").rename(tmp_path / ".data.123.old")
    for name in (".data.123.new", ".data.45.new", ".other.123.new"):
        (tmp_path / name / "work").mkdir(parents=True)
    (tmp_path / ".data.lock").touch()
    with pytest.raises(UserError, match="holds data already"):
        prepare([str(book)], out=tmp_path / "data")
    assert files(tmp_path / "data") == first
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"book.txt", "data", ".other.123.new"}


def test_a_prepare_that_runs_keeps_others_away(book: Path, tmp_path: Path) -> None:
    with module.new_folder(tmp_path / "data", force=False) as folder:
        with pytest.raises(UserError, match="one writer at a time"):
            prepare([str(book)], out=tmp_path / "data")
        assert folder.exists()


def test_says_that_most_is_unknown(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("xyzzy\n")
    prepare([str(book)], out=tmp_path / "data", vocab=tmp_path / "words.txt")
    said = " ".join(capsys.readouterr().err.split())
    assert "of the tokens of the train split are unknown words" in said
    prepare([str(book)], out=tmp_path / "fits")
    assert "unknown words" not in capsys.readouterr().err


HELPERS = """
import sys
from thinwire.data import sources
from thinwire.data.prepare import prepare
if __name__ == "__main__":
    sources.BLOCK_BYTES = 1000
    import multiprocessing, os, signal
    from thinwire.data import prepare as module
    def killed(*_):
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    spool = module.spool
    def tell(*args):
        pieces = spool(*args)
        yield next(pieces)
        killed()
    module.spool = tell
    prepare([sys.argv[1]], out=sys.argv[2] and __import__("pathlib").Path(sys.argv[2]),
            num_processes=2)
"""


def test_helpers_end_with_a_killed_parent(book: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(HELPERS)
    command = [sys.executable, str(tmp_path / "program.py"), str(book), str(tmp_path / "data")]
    # The pipe ends when the last process that holds it, helpers among them, has ended.
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.split()) == 2


def test_a_folder_is_removed_though_no_descriptor_is_left(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        sentence, data = "Too many open files", tmp_path / "data"
        with pytest.raises(OSError, match=sentence), new_folder(data, force=False) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").touch()
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in opened:
            os.close(descriptor)
    assert list(tmp_path.iterdir()) == []
