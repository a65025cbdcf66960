from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.data.corpus import Corpus, Meta, SplitMeta, file_digest, narrowest_dtype
from thinwire.errors import UserError


def write(folder: Path, splits: dict[str, list[int]], vocab_size: int) -> Corpus:
    """A data folder with these ids."""
    dtype = narrowest_dtype(vocab_size)
    about = {}
    for name, ids in splits.items():
        file = folder / f"{name}.bin"
        np.array(ids, dtype).tofile(file)
        about[name] = SplitMeta(
            tokens=len(ids), unknown=0, words=0, characters=0, lines=0, blake2b=file_digest(file)
        )
    (folder / "tokenizer.json").write_text("{}")
    Meta(
        tokenizer="word",
        tokenizer_blake2b=file_digest(folder / "tokenizer.json"),
        vocab_size=vocab_size,
        dtype=dtype.name,
        unk_id=min(1, vocab_size - 1),
        eos_id=0,
        counts=np.bincount(splits["train"], minlength=vocab_size).tolist(),
        splits=about,
    ).write(folder / "meta.json")
    return Corpus.open(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write(tmp_path, {"train": [1, 2, 0, 2, 0], "valid": [2, 0], "test": []}, 300)


@given(
    vocab_size=st.sampled_from([1, 2, 255, 256, 257, 65535, 65536, 65537, 100_000]),
    sizes=st.lists(st.integers(0, 50), min_size=3, max_size=3),
    seed=st.integers(0, 9),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, vocab_size: int, sizes: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    splits = {
        name: [*rng.integers(vocab_size, size=size).tolist(), vocab_size - 1]
        for name, size in zip(("train", "valid", "test"), sizes, strict=True)
    }
    corpus = write(tmp_path_factory.mktemp("corpus"), splits, vocab_size)
    for name, ids in splits.items():
        found = corpus.ids(name)
        assert found.tolist() == ids
        assert found.itemsize == (1 if vocab_size <= 256 else 2 if vocab_size <= 65536 else 4)
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 0
    assert corpus.counts_V.sum() == len(splits["train"])


def test_an_empty_split_is_empty(corpus: Corpus) -> None:
    assert len(corpus.ids("test")) == 0
    with pytest.raises(UserError, match="'dev' is no split: there are train, valid, test"):
        corpus.ids("dev")


def test_the_fingerprint_stands_for_the_content(tmp_path: Path) -> None:
    ids = {"train": [1, 2, 0], "valid": [2, 0], "test": [0]}
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    one, two = write(folders[0], ids, 5), write(folders[1], ids, 5)
    other = write(folders[2], ids | {"test": [1]}, 5)
    assert one.meta.fingerprint == two.meta.fingerprint != other.meta.fingerprint


def test_refuses_what_is_no_data_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no data folder: make one with `thinwire prepare`"):
        Corpus.open(tmp_path / "gone")
    with pytest.raises(UserError, match=r"is no data folder, for it holds no meta\.json"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "test.bin", "tokenizer.json"])
def test_notices_a_missing_file(corpus: Corpus, name: str) -> None:
    (corpus.path / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        Corpus.open(corpus.path, verify=False)


def test_notices_a_truncated_file(corpus: Corpus) -> None:
    file = corpus.path / "train.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train\.bin has 9 bytes instead of 10"):
        Corpus.open(corpus.path, verify=False)


@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "tokenizer.json"])
def test_notices_a_changed_byte(corpus: Corpus, name: str) -> None:
    file = corpus.path / name
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} has the digest .* changed or damaged"):
        Corpus.open(corpus.path)


def test_notices_an_id_that_the_vocabulary_lacks(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the digests are right: it would be looked up in tables that have no such row."""
    monkeypatch.setattr("thinwire.data.corpus.PIECE_TOKENS", 2)
    folder = corpus.path
    for name, ids in (("train", [1, 2, 0, 2, 299]), ("valid", [2, 300])):
        np.array(ids, "<u2").tofile(folder / f"{name}.bin")
        digest = file_digest(folder / f"{name}.bin")
        changed = replace(corpus.meta.splits[name], blake2b=digest)
        corpus = replace(
            corpus, meta=replace(corpus.meta, splits={**corpus.meta.splits, name: changed})
        )
        corpus.meta.write(folder / "meta.json")
        if name == "train":
            assert Corpus.open(folder).ids("train")[-1] == 299
    with pytest.raises(UserError, match=r"valid\.bin holds the id 300, and the vocabulary has 300"):
        Corpus.open(folder)


def edited(corpus: Corpus, **changes: object) -> Path:
    file = corpus.path / "meta.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(content))
    return corpus.path


def test_notices_an_edited_description(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"meta\.json says fingerprint .* but its content has"):
        Corpus.open(edited(corpus, eos_id=2))


def test_says_that_a_format_is_unknown(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="is of format 2, and this thinwire reads format 1"):
        Corpus.open(edited(corpus, format=2))


@pytest.mark.parametrize("changes", [{"surprise": 1}, {"splits": 3}, {"splits": {"train": {}}}])
def test_refuses_what_it_does_not_understand(corpus: Corpus, changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"meta\.json is damaged"):
        Corpus.open(edited(corpus, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": "7"},
        {"vocab_size": -1},
        {"eos_id": 1.5},
        {"eos_id": 1000},
        {"unk_id": True},
        {"counts": [1]},
        {"counts": [1, 1 << 63]},
        {"counts": [None]},
        {"dtype": "float32"},
        {"tokenizer": 3},
        {"tokens": "é"},
        {"blake2b": 7},
    ],
    ids=str,
)
def test_refuses_values_of_wrong_types(corpus: Corpus, changes: dict[str, Any]) -> None:
    """Even where the fingerprint is that of the content."""
    (name,) = changes
    meta = corpus.meta
    if name in ("tokens", "blake2b"):
        changes = {"splits": {**meta.splits, "train": replace(meta.splits["train"], **changes)}}
    replace(meta, **changes).write(corpus.path / "meta.json")
    with pytest.raises(UserError, match=rf"meta\.json is damaged \((count|{name})"):
        Corpus.open(corpus.path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\udcff"])
def test_refuses_a_damaged_description(corpus: Corpus, text: str) -> None:
    (corpus.path / "meta.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"meta\.json is damaged"):
        Corpus.open(corpus.path)
