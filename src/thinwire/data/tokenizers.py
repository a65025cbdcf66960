"""Text to token ids and back.

Every tokenizer is stored as a `tokenizer.json` that HF `tokenizers` can load. There it encodes
every line to the same ids as here, followed by `</s>`, which its template post-processor adds. The
kinds `word` and `space` do not use HF `tokenizers` here: a compiled regular expression and a dict
are three times as fast, and a vocabulary of a million words loads in a fraction of the time.

For the kinds `word` and `space`, a literal `<unk>` in the text is the unknown word; in
`tokenizer.json` it is a special token, which is found before anything else. A literal `</s>` is not
special, because only a line end may end a line. It is ordinary text: three marks and a letter for
kind `word`, an unknown word for kind `space`, letters for `bpe` and `bytes`. A tokenizer from a
file that encodes a literal end-of-line token as that token is prevented from it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import regex

from thinwire.data import sentencepiece, symbols
from thinwire.data.pieces import PieceEncoder
from thinwire.data.symbols import SymbolEncoder
from thinwire.data.tokenizer_json import (
    EOS,
    NEVER_IN_UTF8,
    PATTERNS,
    UNK,
    byte_tokens,
    end_of_line,
    to_json,
    word_kind,
)
from thinwire.errors import UserError
from thinwire.files import parse_json

if TYPE_CHECKING:
    import tokenizers

# `<unk>` is found first, also inside a word, which it then splits.
_FIND = {
    "word": regex.compile(rf"{UNK}|{PATTERNS['word']}"),
    "space": regex.compile(rf"{UNK}|(?:(?!{UNK})\S)+"),
}

Ids = npt.NDArray[np.uint32]


class Tokenizer(ABC):
    """A tokenizer of any kind, loaded from `tokenizer.json` by `Tokenizer.load(path)`."""

    vocab_size: int
    unk_id: int | None
    eos_id: int

    @staticmethod
    def load(path: Path | str) -> Tokenizer:
        """Read a `tokenizer.json`. Raises UserError: it cannot be used."""
        return Tokenizer.parse(read_tokenizer(path), str(path))

    @staticmethod
    def parse(text: str, name: str) -> Tokenizer:
        """Read the content of a `tokenizer.json`; `name` is for messages."""
        try:
            content = parse_json(text)
            kind = word_kind(content)
            if kind is not None:
                return WordTokenizer(kind, content["model"]["vocab"])
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{name} is no tokenizer.json of HF tokenizers: {error!r}") from error
        return HFTokenizer(text, content, name)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of one line, without its end-of-line."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to readable text; an end-of-line token becomes a line end."""

    @abstractmethod
    def token(self, id: int) -> str:
        """The token with this id, as it is written in the vocabulary."""

    def encode_lines(self, lines: Iterable[str]) -> list[Ids]:
        """The ids of each line, followed by `eos_id`."""
        return [np.array([*self.encode(line), self.eos_id], dtype=np.uint32) for line in lines]


class WordTokenizer(Tokenizer):
    """A tokenizer of kind `word` or `space`: a list of words; any other word is `<unk>`."""

    def __init__(self, kind: str, vocab: dict[str, int]) -> None:
        if set(vocab.values()) != set(range(len(vocab))):
            raise ValueError("ids of a vocabulary are 0, 1, 2, ...")
        self.kind = kind
        self._id_of = {word: id for word, id in vocab.items() if word != EOS}
        self.vocab_size = len(vocab)
        self.unk_id: int = vocab[UNK]
        self.eos_id = vocab[EOS]
        self.words = sorted(vocab, key=vocab.__getitem__)

    def encode(self, text: str) -> list[int]:
        """The ids of one line, without its end-of-line."""
        get, unk_id = self._id_of.get, self.unk_id
        return [get(word, unk_id) for word in find_words(self.kind, text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to readable text; an end-of-line token becomes a line end."""
        words = (self.words[id] for id in ids)
        return "".join(_spelt(words) if self.kind == "word" else _spaced(words))

    def token(self, id: int) -> str:
        """The token with this id, as it is written in the vocabulary."""
        return self.words[id]


class HFTokenizer(Tokenizer):
    """Any other `tokenizer.json`, through HF `tokenizers`."""

    def __init__(self, text: str, content: dict[str, Any], name: str) -> None:
        from tokenizers import Tokenizer as HF  # here: 30 ms that `word` and `space` do not need

        try:
            self._hf: tokenizers.Tokenizer = HF.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{name} is no tokenizer.json of HF tokenizers: {error}") from error
        self._hf.no_truncation()
        self._hf.no_padding()
        self._name = name
        # Not the number of tokens, because the ids of a given file may have gaps.
        self.vocab_size = max(self._hf.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.unk_id = self._find_unknown(name, content)
        self.eos_id = self._find_end_of_line(name)
        self._exact = _exact_encoder(content)
        self._encoder = self._hf if self._exact else self._without_end_of_line(content)

    def encode(self, text: str) -> list[int]:
        """The ids of one line, without its end-of-line."""
        if self._exact is not None:
            return self._never_ends(self._exact.encode([text])[0])
        return self._never_ends(self._encoder.encode(text, add_special_tokens=False).ids)

    def encode_lines(self, lines: Iterable[str]) -> list[Ids]:
        """The ids of each line, followed by `eos_id`."""
        if self._exact is not None:
            return [
                np.array([*self._never_ends(ids), self.eos_id], dtype=np.uint32)
                for ids in self._exact.encode(list(lines))
            ]
        return [
            np.array([*self._never_ends(line.ids), self.eos_id], dtype=np.uint32)
            for line in self._encoder.encode_batch_fast(list(lines), add_special_tokens=False)
        ]

    def _without_end_of_line(self, content: dict[str, Any]) -> tokenizers.Tokenizer:
        """The same tokenizer, changed so that it does not find its end-of-line token in a text."""
        added, eos = content.get("added_tokens") or [], self.token(self.eos_id)
        if all(token["content"] != eos for token in added):
            return self._hf
        if eos in self._hf.get_vocab(with_added_tokens=False):
            added = [token for token in added if token["content"] != eos]
        else:  # HF tokenizers numbers added tokens by their order: a name that no text can hold
            added = [
                token | {"content": "\0"} if token["content"] == eos else token for token in added
            ]
        encoder = type(self._hf).from_str(json.dumps(content | {"added_tokens": added}))
        ids, changed = self._hf.get_vocab(), encoder.get_vocab()
        if any(changed.get(token) != id for token, id in ids.items() if token != eos):
            return self._hf
        encoder.no_truncation()
        encoder.no_padding()
        return encoder

    def _never_ends(self, ids: list[int]) -> list[int]:
        """The ids of a line, in which a literal end-of-line token is ordinary text.

        Where the token is in the model's own vocabulary, as words are, a text may spell it.
        """
        if self.eos_id not in ids:
            return ids
        if self.unk_id is None:
            raise UserError(
                f"the text holds {self.token(self.eos_id)!r}, which {self._name} takes for the end "
                "of a line: take it out of the text, or out of the tokenizer's vocabulary"
            )
        return [self.unk_id if id == self.eos_id else id for id in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to readable text; an end-of-line token becomes a line end."""
        lines: list[list[int]] = [[]]
        for id in ids:
            if id == self.eos_id:
                lines.append([])
            else:
                lines[-1].append(int(id))
        return "\n".join(self._hf.decode(line, skip_special_tokens=False) for line in lines)

    def token(self, id: int) -> str:
        """The token with this id, as it is written in the vocabulary."""
        return self._hf.id_to_token(id) or ""

    # Names of end-of-text tokens in common tokenizers, the most common first.
    _ENDS: Sequence[str] = (
        EOS, "<sos/eos>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "<|eos|>", "[EOS]", "<EOS>",
        "[SEP]",
    )  # fmt: skip

    def _find_end_of_line(self, name: str) -> int:
        for token in self._ENDS:
            if (id := self._hf.token_to_id(token)) is not None:
                return int(id)
        raise UserError(
            f"{name} has no token that can end a line: add one of {', '.join(self._ENDS)}"
        )

    def _find_unknown(self, name: str, content: dict[str, Any]) -> int | None:
        model = content["model"]
        if model.get("unk_id") is not None:  # Unigram counts, the others name
            return int(model["unk_id"])
        if model.get("unk_token") is not None:
            id = self._hf.token_to_id(model["unk_token"])
            if id is not None:
                return int(id)
        spelling = None
        if '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("normalizer")]):
            spelling = {token for byte, token in byte_tokens().items() if byte not in NEVER_IN_UTF8}
        elif model.get("byte_fallback"):
            spelling = {f"<0x{byte:02X}>" for byte in range(256) if byte not in NEVER_IN_UTF8}
        if spelling is None:
            raise UserError(
                f"{name} neither names an unknown token nor works on bytes, so it would drop "
                "what it does not know"
            )
        # A line contains no line ends and no NUL.
        spelling -= {byte_tokens()[0], byte_tokens()[ord("\n")], "<0x00>", "<0x0A>"}
        if missing := spelling - self._hf.get_vocab(with_added_tokens=True).keys():
            raise UserError(
                f"{name} names no unknown token, and its vocabulary lacks {len(missing)} of the "
                f"{len(spelling)} bytes that a text may hold, {min(missing)!r} for one: it would "
                "drop them"
            )
        return None


def read_tokenizer(path: Path | str) -> str:
    """The content of a `tokenizer.json`. Raises UserError: it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no tokenizer.json of HF tokenizers: {error}") from error


def _exact_encoder(content: dict[str, Any]) -> PieceEncoder | SymbolEncoder | None:
    """The encoder of a file that was converted from another format; None: HF `tokenizers`."""
    if sentencepiece.KEY in content["model"]:
        return PieceEncoder(content)
    if symbols.KEY in content["model"]:
        return SymbolEncoder(content)
    return None


def ending_lines(content: dict[str, Any], name: str) -> str:
    """The same `tokenizer.json`, changed so that it adds its end-of-line token after a line."""
    found = Tokenizer.parse(to_json(content), name)
    end = end_of_line(found.eos_id, found.token(found.eos_id))
    return to_json(content | {"post_processor": end})


def find_words(kind: str, text: str) -> list[str]:
    """The words of a text, for kind `word` or `space`, spelt as in the text."""
    words: list[str] = _FIND[kind].findall(text)
    return words


_NO_SPACE_BEFORE = frozenset(".,;:!?%)]}’”…、。，！？；：）")  # noqa: RUF001
_NO_SPACE_AFTER = frozenset("([{‘“$£€#（")  # noqa: RUF001
_JOINS = frozenset("-'/–—@&*_")  # noqa: RUF001


def _spelt(words: Iterable[str]) -> Iterator[str]:
    """Yield words with spaces between them as in English; this is a guess, for people to read.

    What is put before a word depends on earlier words only, so that a stream can be shown as it
    grows.
    """
    space, quoted = "", False
    for word in words:
        if word == EOS:
            space, quoted = "", False
            yield "\n"
        elif word == '"':
            yield word if quoted else space + word
            space = " " if quoted else ""
            quoted = not quoted
        else:
            joined = word in _NO_SPACE_BEFORE or word in _JOINS
            yield word if joined else space + word
            space = "" if word in _NO_SPACE_AFTER or word in _JOINS else " "


def _spaced(words: Iterable[str]) -> Iterator[str]:
    space = ""
    for word in words:
        yield "\n" if word == EOS else space + word
        space = "" if word == EOS else " "
