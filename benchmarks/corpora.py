"""The texts on which benchmarks train, as data folders in the cache.

`poetry` is the default, for a command fetches it: English verse, 29.7 M training tokens. `novels`
are a second corpus for those who have the files: 99 English novels, 16.5 M training tokens. Texts
are checked against their sha256 when they first come into the cache; `thinwire prepare` splits the
same text into the same parts every time.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import os
import subprocess
import sys
from pathlib import Path

NOVELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "novels"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "thinwire" / "benchmarks"
CORPORA = ("poetry", "novels")
SPLITS = ("train", "valid", "test")
SHA256 = {
    "poetry.txt": "aaea7b67da74898a0cd73a64c92f2d7720399bc6be78e7a3f4767f337d07e06d",
    "shakespeare.txt": "00589e7dfb88a0f27d12b1cd19053e84825eaf49d9de2b5e51337c7f87f337ce",
    "kjv.txt": "1a2fc8298bb598f6ff0015fa45d01ca5f5835b04ea21f1f1af7f947308344ff9",
}


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """Give a script `--corpus`, and `--data` for any data folder."""
    parser.add_argument("--corpus", choices=CORPORA, default=CORPORA[0])
    parser.add_argument("--data", type=Path, help="a data folder in place of the corpus")


def data_folder(arguments: argparse.Namespace, *options: str) -> Path:
    """The data folder that `--data` or `--corpus` names, prepared with these options."""
    folder: Path | None = arguments.data
    return folder or corpus(arguments.corpus, *options)


def record_name(name: str, corpus: str) -> str:
    """Of a benchmark's results on a corpus: `losses`, `losses-novels`."""
    return name if corpus == CORPORA[0] else f"{name}-{corpus}"


def corpus(name: str, *options: str) -> Path:
    """A corpus as a data folder, prepared with these further options of `thinwire prepare`."""
    files = texts(name)
    held_out = [
        part for split, text in files.items() if split != "train" for part in (f"--{split}", text)
    ]
    folder = "-".join([name, *(option.lstrip("-") for option in options)])
    return prepared(folder, files["train"], *held_out, *options)


def texts(name: str) -> dict[str, Path]:
    """A corpus as plain text files: train and, where it comes split, valid and test."""
    return _novels() if name == "novels" else {"train": fetched(name)}


def fetched(name: str) -> Path:
    """A text that `thinwire fetch` knows, fetched the first time."""
    folder = CACHE / f"{name}-text"
    text = folder / f"{name}.txt"
    if not text.exists():
        command = [sys.executable, "-m", "thinwire", "fetch", name, "--out", str(folder)]
        subprocess.run(command, check=True)
        _check(text)
    return text


def _novels() -> dict[str, Path]:
    folder = CACHE / "novels-text"
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: folder / f"{split}.txt" for split in SPLITS}
    for split, text in files.items():
        if not text.exists():
            source = NOVELS / f"{split}.txt.xz"
            if not source.exists():
                sys.exit(f"--corpus novels needs {source}; --corpus poetry is fetched")
            text.write_bytes(lzma.decompress(source.read_bytes()))
    return files


def _check(text: Path) -> None:
    """Whether a text is that on which the record was made."""
    expected = SHA256.get(text.name)
    with text.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if expected not in (None, found):
        text.unlink()
        sys.exit(f"{text.name}: sha256 {found}, but the record was made with {expected}")


def prepared(name: str, text: Path, *options: str | Path) -> Path:
    """A data folder in the cache, made by `thinwire prepare` the first time."""
    out = CACHE / name
    if not out.exists():
        command = [sys.executable, "-m", "thinwire", "prepare", str(text), "--out", str(out)]
        subprocess.run([*command, *map(str, options)], check=True)
    return out
