"""Raw text to a data folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from thinwire.data.corpus import Corpus, Meta, SplitMeta, file_digest, narrowest_dtype
from thinwire.data.tokenizers import EOS, UNK, find_words, word_tokenizer_json


def prepare_corpus(
    train: Path, *, out: Path, valid: Path, test: Path, min_count: int = 2
) -> Corpus:
    files = {"train": train, "valid": valid, "test": test}
    texts = {k: f.read_text(encoding="utf-8").splitlines() for k, f in files.items()}
    counts = Counter()
    tok = {}
    for k, lines in texts.items():
        tok[k] = [w for line in lines for w in (*find_words("word", line), EOS)]
    counts = Counter(tok["train"])
    kept = {w: c for w, c in counts.items() if c >= min_count or w == EOS}
    kept[UNK] = sum(counts.values()) - sum(kept.values())
    words = sorted(kept, key=lambda w: (-kept[w], w))
    ids = {w: i for i, w in enumerate(words)}
    dtype = narrowest_dtype(len(words))
    out.mkdir(parents=True)
    splits = {}
    for k, t in tok.items():
        a = np.array([ids.get(w, ids[UNK]) for w in t], dtype)
        a.tofile(out / f"{k}.bin")
        splits[k] = SplitMeta(
            tokens=len(a),
            unknown=int((a == ids[UNK]).sum()),
            words=sum(len(x.split()) for x in texts[k]),
            characters=sum(len(x) + 1 for x in texts[k]),
            lines=len(texts[k]),
            blake2b=file_digest(out / f"{k}.bin"),
        )
    (out / "tokenizer.json").write_text(word_tokenizer_json("word", words), encoding="utf-8")
    Meta(
        tokenizer="word",
        tokenizer_blake2b=file_digest(out / "tokenizer.json"),
        vocab_size=len(words),
        dtype=dtype.name,
        unk_id=ids[UNK],
        eos_id=ids[EOS],
        counts=[kept[w] for w in words],
        splits=splits,
    ).write(out / "meta.json")
    return Corpus.open(out)
