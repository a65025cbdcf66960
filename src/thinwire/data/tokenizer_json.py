"""Makes `tokenizer.json` files for words, bytes and BPE, as HF `tokenizers` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import regex

from thinwire.console import warn
from thinwire.errors import UserError

UNK = "<unk>"
EOS = "</s>"

# The pattern of one token, as written in tokenizer.json. `regex` and Oniguruma, which HF
# `tokenizers` uses, agree on every character that the Unicode tables of both know.
PATTERNS = {
    "word": r"[\p{L}\p{M}]+(?:'[\p{Ll}]+)?|\p{N}+|[^\s\p{L}\p{M}\p{N}]",
    "space": r"\S+",
}
# In `tokenizer.json` of kind `space`, a literal `</s>` becomes a word that neither a text nor a
# vocabulary can contain.
_EOS_IS_UNKNOWN = {
    "type": "Replace",
    "pattern": {"Regex": rf"(?<!\S){EOS}(?!\S)"},
    "content": "\0",
}

LONGEST_LEARNT_WORD = 256
_LONG_WORD = regex.compile(rf"\S{{{LONGEST_LEARNT_WORD}}}(?=\S)")


def word_tokenizer_json(kind: str, words: Sequence[str]) -> str:
    """The `tokenizer.json` of kind `word` or `space` with these words, in the order of their ids.

    `words` holds `<unk>` and `</s>`.
    """
    vocab = {word: id for id, word in enumerate(words)}
    assert len(vocab) == len(words)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocab[UNK],
                "content": UNK,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": _EOS_IS_UNKNOWN if kind == "space" else None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": PATTERNS[kind]},
            "behavior": "Removed",
            "invert": True,
        },
        "post_processor": end_of_line(vocab[EOS]),
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNK},
    }
    return to_json(content)


NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))  # bytes that UTF-8 cannot hold


@cache
def byte_tokens() -> dict[int, str]:
    """The character that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def bytes_tokenizer() -> dict[str, Any]:
    """The `tokenizer.json` of kind `bytes`: the 243 bytes that occur in UTF-8, and `</s>`.

    Without the 13 that it cannot hold, an id fits in one byte.
    """
    tokens = [token for byte, token in byte_tokens().items() if byte not in NEVER_IN_UTF8]
    return _byte_level(tokens, merges=[], use_regex=False)


def train_bpe(lines: Iterator[str], vocab_size: int) -> dict[str, Any]:
    """The `tokenizer.json` of kind `bpe`, learnt from these lines: GPT-2's byte-level BPE."""
    from tokenizers import Tokenizer as HF
    from tokenizers import models, pre_tokenizers, trainers

    bytes_vocab = bytes_tokenizer()["model"]["vocab"]
    if vocab_size <= len(bytes_vocab):
        raise UserError(
            f"a vocabulary of {vocab_size} is too small for BPE: the bytes and {EOS} alone "
            f"are {len(bytes_vocab)}"
        )
    hf = HF(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # </s> comes afterwards, so that no text can spell it
        initial_alphabet=[token for token in bytes_vocab if token != EOS],
        show_progress=False,
    )
    hf.train_from_iterator(_cut_words(lines), trainer)
    model = json.loads(hf.to_str())["model"]
    return _byte_level(
        sorted(model["vocab"], key=model["vocab"].__getitem__), model["merges"], use_regex=True
    )


def _cut_words(lines: Iterator[str]) -> Iterator[str]:
    """The same text with longer words than `LONGEST_LEARNT_WORD` cut; warns if there are any.

    Every merge looks through the whole of each word that it changes: words of a mebibyte take
    minutes.
    """
    num_cut = 0
    for line in lines:
        if len(line) <= LONGEST_LEARNT_WORD:
            yield line
            continue
        pieces = _LONG_WORD.sub(r"\g<0>\n", line).split("\n")
        num_cut += len(pieces) > 1
        yield from pieces
    if num_cut:
        warn(
            f"{num_cut:,} lines hold words of more than {LONGEST_LEARNT_WORD} characters; BPE "
            "learns from their parts"
        )


def renumbered(content: dict[str, Any], tokens: Sequence[str]) -> str:
    """The byte-level `tokenizer.json` with its tokens numbered in this order."""
    vocab = {token: id for id, token in enumerate(tokens)}
    assert vocab.keys() == content["model"]["vocab"].keys()
    content = content | {
        "post_processor": end_of_line(vocab[EOS]),
        "model": content["model"] | {"vocab": vocab},
    }
    return to_json(content)


def to_json(content: dict[str, Any]) -> str:
    """The text of a `tokenizer.json`."""
    # On one line, because `json` is slow with line breaks: seconds for a million words.
    return json.dumps(content, ensure_ascii=False) + "\n"


def _byte_level(tokens: Sequence[str], merges: list[Any], use_regex: bool) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = use_regex
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": end_of_line(len(tokens)),
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate([*tokens, EOS])},
            "merges": merges,
        },
    }


def word_kind(content: dict[str, Any]) -> str | None:
    """`word` or `space` if the file is from `word_tokenizer_json`, else None."""
    model, splitter = content["model"], content.get("pre_tokenizer") or {}
    if model["type"] != "WordLevel" or splitter.get("type") != "Split":
        return None
    if content.get("normalizer") not in (None, _EOS_IS_UNKNOWN):
        return None
    if model.get("unk_token") != UNK or not {UNK, EOS} <= model["vocab"].keys():
        return None
    if {token["content"] for token in content["added_tokens"]} != {UNK}:
        return None
    for kind in PATTERNS:
        ours: dict[str, object] = {"type": "Split", "pattern": {"Regex": PATTERNS[kind]}}
        ours |= {"behavior": "Removed", "invert": True}
        if splitter == ours:
            return kind
    return None


def end_of_line(eos_id: int, eos: str = EOS) -> dict[str, Any]:
    """The `post_processor` that adds the end-of-line token after a line."""
    line = {"Sequence": {"id": "A", "type_id": 0}}
    end = {"SpecialToken": {"id": eos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [line, end],
        "pair": [line, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
        "special_tokens": {eos: {"id": eos, "ids": [eos_id], "tokens": [eos]}},
    }
