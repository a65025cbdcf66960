"""A data folder: token ids as flat files of unsigned integers, and what is known about them.

    tokenizer.json   as HF `tokenizers` writes and reads it
    train.bin        ids in the narrowest little-endian unsigned type, lines ending in `eos_id`
    valid.bin
    test.bin
    meta.json        `Meta`

Ids are in order of decreasing frequency in the training split. The fingerprint identifies the
content of all five files: two folders with the same fingerprint have the same ids for the same
words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from thinwire.errors import UserError
from thinwire.files import read_json

SPLITS = ("train", "valid", "test")
TOKENIZER_FILE = "tokenizer.json"
META_FILE = "meta.json"
FORMAT = 1
PIECE_TOKENS = 1 << 22


# The part of all tokens; with a vocabulary that fits the text, a few hundredths are unknown.
MANY_UNKNOWN = 0.3


def unknown_sentence(name: str, unknown: int, tokens: int) -> str | None:
    """A warning if more than `MANY_UNKNOWN` of the tokens are unknown words, else None."""
    if unknown <= MANY_UNKNOWN * tokens:
        return None
    return (
        f"{unknown / tokens:.0%} of the tokens of {name} are unknown words, which all count as one "
        "that is easy to guess: the perplexity says little (of known words it says more); a "
        "vocabulary from this text, or another --tokenizer, fits it better"
    )


DTYPES = ("uint8", "uint16", "uint32")


def narrowest_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest little-endian unsigned type that holds the ids 0 ... vocab_size - 1."""
    return np.min_scalar_type(max(vocab_size - 1, 0)).newbyteorder("<")


@dataclass(frozen=True, kw_only=True)
class SplitMeta:
    """The size and the digest of one split."""

    tokens: int
    """Number of ids in the split, ends of lines included."""

    unknown: int
    """Number of these ids that stand for an unknown word."""

    words: int
    """Number of words between white space in the raw text, as `wc -w` counts them."""

    characters: int
    """Number of characters of the raw text, line ends included; bits per character divide by it."""

    lines: int
    """Number of lines of the raw text, empty lines included."""

    blake2b: str
    """Digest of the split's file."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """The content of `meta.json`."""

    format: int = FORMAT
    """Version of the format of the folder."""

    tokenizer: str
    """`word`, `space`, `bpe`, `bytes`, or `file` for a tokenizer from a file."""

    tokenizer_blake2b: str
    """Digest of `tokenizer.json`."""

    vocab_size: int
    """Number of ids."""

    dtype: str
    """The NumPy type of the ids in the `.bin` files: `uint8`, `uint16` or `uint32`."""

    unk_id: int | None
    """Id of unknown words; None if the tokenizer can encode every text."""

    eos_id: int
    """Id that ends every line."""

    counts: list[int]
    """How often each id occurs in the training split."""

    splits: Mapping[str, SplitMeta]
    """The splits by name: train, valid, test."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of all values here; they include the digests of the other files."""
        content = json.dumps(self._content(), sort_keys=True, ensure_ascii=True)
        return blake2b(content.encode(), digest_size=16).hexdigest()

    def write(self, path: Path) -> None:
        """Write `meta.json`."""
        content = self._content() | {"fingerprint": self.fingerprint}
        # One line for each key, so that the many counts do not fill the screen.
        lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    def _check_values(self) -> None:
        """Raises ValueError: a value has the wrong type or is out of its range."""
        numbers = {"vocab_size": self.vocab_size, "eos_id": self.eos_id, "unk_id": self.unk_id or 0}
        texts = {"tokenizer": self.tokenizer, "tokenizer_blake2b": self.tokenizer_blake2b}
        for split, about in self.splits.items():
            for name, value in vars(about).items():
                (texts if name == "blake2b" else numbers)[f"{name} of {split}"] = value
        numbers |= {f"count {id}": count for id, count in enumerate(self.counts)}
        for name, value in numbers.items():
            if type(value) is not int or not 0 <= value < 1 << 63:
                raise ValueError(f"{name} is {value!r}")
        for name, text in texts.items():
            if not isinstance(text, str):
                raise ValueError(f"{name} is {text!r}")
        for name, id in (("eos_id", self.eos_id), ("unk_id", self.unk_id or 0)):
            if id >= self.vocab_size:
                raise ValueError(f"{name} is {id}, and there are {self.vocab_size} ids")
        if len(self.counts) != self.vocab_size:
            raise ValueError(f"counts are {len(self.counts)}, and there are {self.vocab_size} ids")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}")

    def _content(self) -> dict[str, Any]:
        # Not `asdict`, which copies the counts one by one.
        return vars(self) | {"splits": {name: vars(about) for name, about in self.splits.items()}}

    @classmethod
    def read(cls, path: Path) -> Meta:
        """Read `meta.json`. Raises UserError: it is damaged, or in another format."""
        try:
            content = read_json(path)
            found, fingerprint = content.pop("format"), content.pop("fingerprint")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): prepare the data again") from error
        if found != FORMAT:
            raise UserError(
                f"{path} is of format {found}, and this thinwire reads format {FORMAT}: "
                "prepare the data again"
            )
        try:
            content["splits"] = {name: SplitMeta(**s) for name, s in content["splits"].items()}
            meta = cls(**content)
            meta._check_values()
            computed = meta.fingerprint
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): prepare the data again") from error
        if computed != fingerprint:
            raise UserError(
                f"{path} says fingerprint {fingerprint}, but its content has {computed}: "
                "prepare the data again"
            )
        return meta


def file_digest(path: Path) -> str:
    """Hex BLAKE2b digest of a file, read in pieces."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True, repr=False)
class Corpus:
    """A data folder that has been checked; `open` and `thinwire.prepare` return it.

    Attributes:
        path: the folder.
        meta: the content of `meta.json`: tokenizer, vocabulary, counts, splits.

    Examples:
        >>> import thinwire
        >>> corpus = thinwire.Corpus.open("data")
        >>> ids = corpus.ids("valid")  # a memory map: unsigned integers, `[tokens]`
        >>> int(ids[-1]) == corpus.meta.eos_id
        True
    """

    path: Path
    meta: Meta

    splits: ClassVar[tuple[str, ...]] = SPLITS

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {about.tokens:,}" for name, about in self.meta.splits.items())
        return (
            f"Corpus({str(self.path)!r}: {sizes} {self.meta.tokenizer} tokens, vocabulary "
            f"{self.meta.vocab_size:,})"
        )

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Corpus:
        """Open a data folder.

        Args:
            path: the folder.
            verify: read all files, compare their digests (a second per gigabyte), and look for ids
                that are not in the vocabulary. If False, only the metadata and the sizes of the
                files are checked.

        Raises:
            UserError: it is not a data folder, or it is damaged.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path} is no data folder: make one with `thinwire prepare`")
        if not (path / META_FILE).is_file():
            raise UserError(
                f"{path} is no data folder, for it holds no {META_FILE}: "
                "make one with `thinwire prepare`"
            )
        corpus = cls(path, Meta.read(path / META_FILE))
        corpus._check_sizes()
        if verify:
            corpus._check_digests()
            corpus._check_ids()
        return corpus

    @property
    def tokenizer_file(self) -> Path:
        """The path of `tokenizer.json`."""
        return self.path / TOKENIZER_FILE

    @property
    def counts_V(self) -> npt.NDArray[np.int64]:
        """How often each id occurs in the training split, `[V]`."""
        return np.array(self.meta.counts, dtype=np.int64)

    def require_validation_text(self) -> None:
        """Check that a run on this folder can be evaluated.

        Raises:
            UserError: the validation split is empty.
        """
        if not len(self.ids("valid")):
            raise UserError(
                f"{self.path} has no validation text: prepare it again with --valid FILE or "
                "--valid 0.01"
            )

    def ids(self, split: str) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The ids of a split, [tokens], read-only and memory-mapped."""
        if split not in self.meta.splits:
            raise UserError(f"{split!r} is no split: there are {', '.join(self.meta.splits)}")
        dtype = np.dtype(self.meta.dtype).newbyteorder("<")
        if self.meta.splits[split].tokens == 0:  # an empty file cannot be mapped
            return np.empty(0, dtype)
        return np.memmap(self._bin(split), dtype=dtype, mode="r")

    def _bin(self, split: str) -> Path:
        return self.path / f"{split}.bin"

    def _check_sizes(self) -> None:
        width = np.dtype(self.meta.dtype).itemsize
        for split, about in self.meta.splits.items():
            file = self._bin(split)
            if not file.is_file():
                raise UserError(f"{file} is missing: prepare the data again")
            found, expected = file.stat().st_size, about.tokens * width
            if found != expected:
                raise UserError(
                    f"{file} has {found:,} bytes instead of {expected:,}: prepare the data again"
                )
        if not self.tokenizer_file.is_file():
            raise UserError(f"{self.tokenizer_file} is missing: prepare the data again")

    def _check_digests(self) -> None:
        digests = {self.tokenizer_file: self.meta.tokenizer_blake2b}
        digests |= {self._bin(split): about.blake2b for split, about in self.meta.splits.items()}
        for file, expected in digests.items():
            found = file_digest(file)
            if found != expected:
                raise UserError(
                    f"{file} has the digest {found} instead of {expected}, so it was changed "
                    "or damaged: prepare the data again"
                )

    def _check_ids(self) -> None:
        for split in self.meta.splits:
            ids = self.ids(split)
            for at in range(0, len(ids), PIECE_TOKENS):
                largest = int(ids[at : at + PIECE_TOKENS].max())
                if largest >= self.meta.vocab_size:
                    raise UserError(
                        f"{self._bin(split)} holds the id {largest}, and the vocabulary has "
                        f"{self.meta.vocab_size}: prepare the data again"
                    )
