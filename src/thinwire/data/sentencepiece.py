"""Converts a SentencePiece `.model` to a `tokenizer.json` with the same ids.

A `.model` is a protocol buffer (`sentencepiece_model.proto` of that project). Its `tokenizer.json`
loads in HF `tokenizers`, which normalises some texts in another way and lets a text spell control
symbols. What thinwire needs to give SentencePiece's own ids (`pieces`) is kept in the file under
`model.sentencepiece`, which other readers skip.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from thinwire.errors import UserError

SPACE = "▁"
KEY = "sentencepiece"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
# A user-defined symbol has a higher score than any pieces for the same text (unigram_model.cc).
USER_DEFINED_LOSS = 0.1


def read_sentencepiece(path: Path) -> dict[str, Any]:
    """The content of the `tokenizer.json` of a SentencePiece model.

    Raises:
        UserError: it is none, or of a kind that no `tokenizer.json` can be made of.
    """
    try:
        return _tokenizer_json(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise UserError(f"{path} is no SentencePiece model, or it is damaged ({error})") from error


def _tokenizer_json(data: bytes, path: Path) -> dict[str, Any]:
    fields = list(_fields(data))
    pieces = [_piece(value) for number, value in fields if number == 1]
    trainer = dict(_fields(next(value for number, value in fields if number == 2)))
    normaliser = dict(_fields(next(value for number, value in fields if number == 3)))
    kind = trainer.get(3, UNIGRAM)
    unknown = [id for id, (_, _, type) in enumerate(pieces) if type == UNKNOWN]
    if kind not in (UNIGRAM, BPE):
        raise UserError(f"{path} is a SentencePiece model of kind word or char: use unigram or bpe")
    if trainer.get(24):
        raise UserError(f"{path} puts white space after words, which tokenizer.json cannot say")
    if len(unknown) != 1 or len({text for text, _, _ in pieces}) < len(pieces):
        raise UserError(f"{path} has a piece twice, or not one for unknown text")
    charsmap = normaliser.get(2, b"")
    spec = {
        "types": [type for _, _, type in pieces],
        "charsmap": base64.b64encode(charsmap).decode(),
        "dummy_prefix": bool(normaliser.get(3, 1)),
        "remove_extra_spaces": bool(normaliser.get(4, 1)),
        "escape_spaces": bool(normaliser.get(5, 1)),
    }
    fallback = bool(trainer.get(35, 0))
    make = _unigram if kind == UNIGRAM else _bpe
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(id, text, special=type == CONTROL)
            for id, (text, _, type) in enumerate(pieces)
            if type in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(spec)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(spec),
        "model": make(pieces, unknown[0], fallback) | {KEY: spec},
    }


Piece = tuple[str, float, int]


def _unigram(pieces: Sequence[Piece], unk_id: int, fallback: bool) -> dict[str, Any]:
    best = max((score for _, score, type in pieces if type == NORMAL), default=0.0)
    vocab = [
        [text, len(text.encode()) * best - USER_DEFINED_LOSS if type == USER_DEFINED else score]
        for text, score, type in pieces
    ]
    return {"type": "Unigram", "unk_id": unk_id, "vocab": vocab, "byte_fallback": fallback}


def _bpe(pieces: Sequence[Piece], unk_id: int, fallback: bool) -> dict[str, Any]:
    """The merges in the order of the scores of their results; only normal pieces are merged."""
    scores = {text: score for text, score, type in pieces if type == NORMAL}
    merges = [
        (-score, at, text[:at], text[at:])
        for text, score in scores.items()
        for at in range(1, len(text))
        if text[:at] in scores and text[at:] in scores
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[unk_id][0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": fallback,
        "ignore_merges": False,
        "vocab": {text: id for id, (text, _, _) in enumerate(pieces)},
        "merges": [[left, right] for _, _, left, right in sorted(merges)],
    }


def _normalizers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if spec["charsmap"]:
        found.append({"type": "Precompiled", "precompiled_charsmap": spec["charsmap"]})
    if spec["remove_extra_spaces"]:
        found.append(_replace({"Regex": r"\A +| +\z"}, ""))
        found.append(_replace({"Regex": " {2,}"}, " "))
    if spec["dummy_prefix"]:
        found.append({"type": "Prepend", "prepend": " "})
    if spec["escape_spaces"]:
        found.append(_replace({"String": " "}, SPACE))
    return found


def _decoder(spec: dict[str, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [_replace({"String": SPACE}, " ")]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if spec["dummy_prefix"]:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def added_token(id: int, text: str, *, special: bool) -> dict[str, Any]:
    """A token that HF `tokenizers` finds in a text before its model sees it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": text, **flags, "special": special}


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    return fields.get(1, b"").decode(), score, fields.get(3, NORMAL)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message, as numbers or, for any other type, as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value: int | bytes
            value, at = _varint(data, at)
        else:
            if wire == 2:
                size, at = _varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire}")
            if at + size > len(data):
                raise ValueError("it ends early")
            value, at = data[at : at + size], at + size
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
