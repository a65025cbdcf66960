"""How text is prepared with each kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from thinwire.console import print_line
from thinwire.data.encoders import ByteEncoder, Encoder, FileEncoder, WordEncoder
from thinwire.data.sentencepiece import read_sentencepiece
from thinwire.data.symbols import read_symbols
from thinwire.data.tokenizer_json import (
    EOS,
    UNK,
    bytes_tokenizer,
    renumbered,
    to_json,
    word_tokenizer_json,
)
from thinwire.data.tokenizers import Tokenizer, WordTokenizer, ending_lines, read_tokenizer
from thinwire.data.vocabulary import (
    TYPES_IN_MEMORY,
    Tally,
    Vocabulary,
    all_tokens,
    choose_words,
    fixed_words,
    given_tokens,
    read_words,
)
from thinwire.errors import UserError

KINDS = ("word", "space", "bpe", "bytes")
DEFAULT_BPE_SIZE = 16384
SMALLEST_SHARD_TYPES = 1 << 16

LearnBPE = Callable[[int], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The user's options for the vocabulary; None: not given."""

    vocab_size: int | None = None
    """The largest number of ids, special ones included."""

    min_count: int | None = None
    """A word that occurs less often in the training split is unknown."""

    vocab: Path | None = None
    """A file with one word per line: these words get ids, and no others."""

    def refuse(self, tokenizer: str, *names: str) -> None:
        """Raises UserError: one of these options was given."""
        for name in names:
            if getattr(self, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} has no meaning with --tokenizer {tokenizer}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The functions that prepare text with one kind of tokenizer."""

    kind: str
    """The kind of tokenizer, as in `meta.json`."""

    make_encoder: Callable[[], Encoder]
    """Makes the encoder of a process."""

    vocabulary: Callable[[Tally], Vocabulary]
    """Chooses the vocabulary by the counts in the training split."""

    tokenizer_json: Callable[[Sequence[str]], str]
    """Makes the content of `tokenizer.json` from the tokens in the order of their ids."""

    unk: str | None
    """The token for words that are not in the vocabulary; None: there are none."""

    eos: str = EOS
    """The token that ends a line."""


def find_recipe(
    tokenizer: str, options: Options, *, num_processes: int, learn_bpe: LearnBPE
) -> Recipe:
    """The recipe of a kind or of a `tokenizer.json`, the options checked.

    `learn_bpe(vocab_size)` gives the content of a `tokenizer.json`; called for kind `bpe` only.
    """
    if tokenizer in ("word", "space"):
        return _words(tokenizer, options, num_processes)
    if tokenizer == "bytes":
        options.refuse(tokenizer, "vocab_size", "min_count", "vocab")
        return _byte_level("bytes", bytes_tokenizer(), ByteEncoder)
    if tokenizer == "bpe":
        options.refuse(tokenizer, "min_count", "vocab")
        size = DEFAULT_BPE_SIZE if options.vocab_size is None else options.vocab_size
        content = learn_bpe(size)
        return _byte_level("bpe", content, partial(FileEncoder, to_json(content)))
    if not Path(tokenizer).is_file():
        raise UserError(
            f"{tokenizer!r} is no tokenizer: choose {', '.join(KINDS)} or a tokenizer.json file, a "
            "SentencePiece .model or a tokens.txt"
        )
    options.refuse(tokenizer, "vocab_size", "min_count", "vocab")
    return _given(Path(tokenizer), num_processes)


def _words(kind: str, options: Options, num_processes: int) -> Recipe:
    if options.vocab is not None:
        options.refuse(f"{kind} --vocab {options.vocab}", "vocab_size", "min_count")
        words, never = read_words(options.vocab, kind)
        if never:
            print_line(
                f"{len(never):,} of the {len(words):,} words in {options.vocab} can "
                f"never occur with the tokenizer {kind}, {never[0]!r} for one; they "
                "get ids all the same",
            )
        vocabulary = partial(fixed_words, words=words)
    else:
        if options.vocab_size is not None and options.vocab_size < 3:
            raise UserError(
                f"a vocabulary of {options.vocab_size} is too small: with {UNK} and {EOS} it needs "
                "3 at least"
            )
        if options.min_count is not None and options.min_count < 1:
            raise UserError(f"--min-count is {options.min_count}, and must be 1 or more")
        vocabulary = partial(choose_words, size=options.vocab_size, min_count=options.min_count)
    return Recipe(
        kind=kind,
        make_encoder=_word_encoder(kind, num_processes),
        vocabulary=vocabulary,
        tokenizer_json=partial(word_tokenizer_json, kind),
        unk=UNK,
    )


def _byte_level(kind: str, content: dict[str, Any], make_encoder: Callable[[], Encoder]) -> Recipe:
    return Recipe(
        kind=kind,
        make_encoder=make_encoder,
        vocabulary=partial(all_tokens, tokens=list(content["model"]["vocab"])),
        tokenizer_json=partial(renumbered, content),
        unk=None,
    )


def _given(path: Path, num_processes: int) -> Recipe:
    text = _tokenizer_text(path)
    tokenizer = Tokenizer.parse(text, str(path))
    tokens = [tokenizer.token(id) for id in range(tokenizer.vocab_size)]
    unk = None if tokenizer.unk_id is None else tokens[tokenizer.unk_id]
    return Recipe(
        kind="file",
        make_encoder=(
            _word_encoder(tokenizer.kind, num_processes)
            if isinstance(tokenizer, WordTokenizer)
            else partial(FileEncoder, text)
        ),
        vocabulary=partial(given_tokens, tokens=tokens, unk=unk),
        tokenizer_json=lambda _: text,
        unk=unk,
        eos=tokens[tokenizer.eos_id],
    )


def _tokenizer_text(path: Path) -> str:
    """The content of `tokenizer.json`, read from a file or converted from another format."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"\x0a") and path.suffix == ".model":
        return ending_lines(read_sentencepiece(path), str(path))
    if start.lstrip().startswith(b"{") or path.suffix == ".json":
        return read_tokenizer(path)
    return ending_lines(read_symbols(path), str(path))


def _word_encoder(kind: str, num_processes: int) -> Callable[[], Encoder]:
    max_types = max(TYPES_IN_MEMORY // num_processes, SMALLEST_SHARD_TYPES)
    return partial(WordEncoder, kind, max_types)
