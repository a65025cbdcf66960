"""Text to the ids that SentencePiece gives it.

HF `tokenizers` has the same models, with differences that are made up for here:

1. `Normaliser` follows SentencePiece's `normalizer.cc`: the longest match of the compiled map at
   each place; user-defined symbols stay as they are.
2. Pieces that stand for no text (control symbols, bytes, the unknown piece) get names that no text
   can hold.
3. Unknown text of a unigram model is spelt by its bytes afterwards, where the model has them.
4. Of equally probable segmentations, such as `-` `--` and `--` `-`, SentencePiece takes the one
   that its sums in fp32 happen to favour. Lines with such neighbours are segmented here.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from thinwire.data.sentencepiece import (
    BYTE,
    CONTROL,
    KEY,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    added_token,
)

if TYPE_CHECKING:
    import tokenizers

UNKNOWN_LOSS = 10.0  # what unknown text loses against the least probable piece (unigram_model.cc)


class PieceEncoder:
    """Encodes text to the same ids as SentencePiece, with a model from `read_sentencepiece`."""

    def __init__(self, content: dict[str, Any]) -> None:
        from tokenizers import Tokenizer as HF

        model = content["model"]
        spec = model[KEY]
        types = spec["types"]
        is_unigram = model["type"] == "Unigram"
        names = [text for text, _ in model["vocab"]] if is_unigram else list(model["vocab"])
        no_text = (UNKNOWN, CONTROL, UNUSED, *([BYTE] if is_unigram else []))
        hidden = {name: f"\0{name}" for name, t in zip(names, types, strict=True) if t in no_text}
        user = [name for name, type in zip(names, types, strict=True) if type == USER_DEFINED]
        self._is_unigram = is_unigram
        self._byte_ids: list[int] = []
        if is_unigram:
            self._unk_id = int(model["unk_id"])
            vocab = [[hidden.get(text, text), score] for text, score in model["vocab"]]
            self._pieces = {
                text: (id, np.float32(score))
                for id, ((text, score), type) in enumerate(zip(model["vocab"], types, strict=True))
                if type in (NORMAL, USER_DEFINED)
            }
            self._longest = max(map(len, self._pieces), default=1)
            normal = (score for (_, score), t in zip(vocab, types, strict=True) if t == NORMAL)
            self._unknown_score = np.float32(min(normal, default=0.0) - UNKNOWN_LOSS)
            model = model | {"vocab": vocab, "byte_fallback": False}
            if content["model"]["byte_fallback"]:
                self._byte_ids = [names.index(f"<0x{byte:02X}>") for byte in range(256)]
        else:
            ids_of = {hidden.get(text, text): id for text, id in model["vocab"].items()}
            unk = model["unk_token"]
            model = model | {"vocab": ids_of, "unk_token": hidden.get(unk, unk)}
        ids = {name: id for id, name in enumerate(names)}
        content = content | {
            "added_tokens": [added_token(ids[name], name, special=False) for name in user],
            "normalizer": None,
            "post_processor": None,
            "model": model,
        }
        self._hf: tokenizers.Tokenizer = HF.from_str(json.dumps(content))
        self._normalise = Normaliser(spec, user)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line."""
        texts = [self._normalise(line) for line in lines]
        if not self._is_unigram:
            found = self._hf.encode_batch_fast(texts, add_special_tokens=False)
            return [line.ids for line in found]
        spans = self._hf.encode_batch(texts, add_special_tokens=False)
        return [self._encode(text, line) for text, line in zip(texts, spans, strict=True)]

    def _encode(self, text: str, line: tokenizers.Encoding) -> list[int]:
        ids, spans = line.ids, line.offsets
        if any(a != b and _commute(text[slice(*a)], text[slice(*b)]) for a, b in pairwise(spans)):
            ids, spans = self._best_path(text)
        return list(self._spelt(text, ids, spans))

    def _best_path(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The most probable pieces; sums are rounded to fp32 in the order of `unigram_model.cc`."""
        best = [np.float32(0.0)] * (len(text) + 1)
        came: list[tuple[int, int] | None] = [None] * (len(text) + 1)  # begin and id of what ends
        for begin in range(len(text)):
            if begin and came[begin] is None:
                continue
            has_single = False
            for end in range(begin + 1, min(begin + self._longest, len(text)) + 1):
                found = self._pieces.get(text[begin:end])
                if found is None:
                    continue
                has_single |= end == begin + 1
                id, score = found
                if came[end] is None or best[begin] + score > best[end]:
                    best[end], came[end] = best[begin] + score, (begin, id)
            if not has_single:
                end, score = begin + 1, self._unknown_score
                if came[end] is None or best[begin] + score > best[end]:
                    best[end], came[end] = best[begin] + score, (begin, self._unk_id)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        end = len(text)
        while end > 0:
            begin, id = came[end] or (0, 0)
            if ids and id == self._unk_id == ids[-1]:  # neighbours that are unknown are one
                spans[-1] = (begin, spans[-1][1])
            else:
                ids.append(id)
                spans.append((begin, end))
            end = begin
        return ids[::-1], spans[::-1]

    def _spelt(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
    ) -> Iterator[int]:
        """The same ids, with unknown text replaced by the ids of its bytes."""
        for id, (begin, end) in zip(ids, offsets, strict=True):
            if id == self._unk_id and self._byte_ids:
                yield from (self._byte_ids[byte] for byte in text[begin:end].encode())
            else:
                yield id


class Normaliser:
    """The normalisation that SentencePiece applies to a text before it looks for pieces.

    Args:
        spec: the settings that `read_sentencepiece` has stored.
        user_defined: symbols that are not normalised.
    """

    def __init__(self, spec: dict[str, Any], user_defined: Sequence[str]) -> None:
        self._spec = spec
        self._map = _CharsMap(base64.b64decode(spec["charsmap"])) if spec["charsmap"] else None
        self._space = SPACE if spec["escape_spaces"] else " "
        longest_first = sorted(user_defined, key=len, reverse=True)
        self._user = regex.compile(f"({'|'.join(map(regex.escape, longest_first))})")
        self._has_user = bool(user_defined)

    def __call__(self, text: str) -> str:
        """The normalised text."""
        remove = self._spec["remove_extra_spaces"]
        parts = list(self._parts(text))
        if remove:
            first = next((n for n, part in enumerate(parts) if part.strip(" ")), len(parts))
            parts = parts[first:]
        if not parts:
            return ""
        found = [" "] if self._spec["dummy_prefix"] else []
        after_space = remove
        for part in parts:
            if after_space:
                part = part.lstrip(" ")
            if remove:
                part = regex.sub(" {2,}", " ", part)
            if part:
                found.append(part)
                after_space = remove and part.endswith(" ")
        whole = "".join(found).replace(" ", self._space)
        return whole.rstrip(self._space) if remove else whole

    def _parts(self, text: str) -> Iterator[str]:
        pieces = self._user.split(text) if self._has_user else [text]
        for number, piece in enumerate(pieces):
            if number % 2 or self._map is None:
                yield piece
            else:
                yield from self._map.parts(piece)


@dataclass(frozen=True)
class _Match:
    content: str
    length: int


class _CharsMap:
    """SentencePiece's compiled map of strings: a double-array trie (darts-clone) over UTF-8.

    Four bytes with the trie's size, the trie's units of four bytes, then the strings that it maps
    to, each ended by NUL.
    """

    def __init__(self, blob: bytes) -> None:
        (size,) = struct.unpack_from("<I", blob)
        self._units = struct.unpack_from(f"<{size // 4}I", blob, 4)
        self._strings = blob[4 + size :]
        first = [self._child(self._root, byte) for byte in range(128)]
        # ASCII characters that the map never changes, before any other ASCII character.
        plain = "".join(
            regex.escape(chr(byte))
            for byte, unit in enumerate(first)
            if unit is None
            or not (self._is_end(unit[0]) or any(self._child(unit[1], b) for b in range(128)))
        )
        self._plain = regex.compile(rf"[{plain}]+(?![^\x00-\x7F])" if plain else r"(?!)")

    def parts(self, text: str) -> Iterator[str]:
        """Split the text into pieces, and map each."""
        data, at, done = text.encode(), 0, 0
        while at < len(text):
            if run := self._plain.match(text, at):
                yield run[0]
                at, done = run.end(), done + len(run[0])
                continue
            found = self._longest(data, done)
            if found is None:
                yield text[at]
                done += len(text[at].encode())
                at += 1
            else:
                yield found.content
                at += len(data[done : done + found.length].decode())
                done += found.length

    def _longest(self, data: bytes, start: int) -> _Match | None:
        node, found = self._root, None
        for index in range(start, len(data)):
            step = self._child(node, data[index])
            if step is None:
                break
            unit, node = step
            if self._is_end(unit):
                begin = self._units[node] & 0x7FFFFFFF
                end = self._strings.index(b"\0", begin)
                found = _Match(self._strings[begin:end].decode(), index + 1 - start)
        return found

    @property
    def _root(self) -> int:
        return _offset(self._units[0])

    def _child(self, node: int, byte: int) -> tuple[int, int] | None:
        """The trie unit that a byte leads to from a node, and the node below it."""
        index = node ^ byte
        unit = self._units[index] if index < len(self._units) else 0
        if byte == 0 or unit & 0x800000FF != byte:
            return None
        return unit, index ^ _offset(unit)

    @staticmethod
    def _is_end(unit: int) -> bool:
        return bool(unit >> 8 & 1)


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


def _commute(a: str, b: str) -> bool:
    """Whether two different pieces give the same text in either order."""
    return a != b and a + b == b + a
