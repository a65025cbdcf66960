"""Turns raw text into a data folder, on all cores; memory does not grow with the text.

1. **Read.** Processes encode blocks of lines to provisional ids (see `encoders`), which are written
   to temporary files beside the folder, four bytes per token.
2. **Divide.** The number of lines is now known, and it determines which lines are held out.
3. **Count.** The provisional ids of the training split are counted. The counts of the words
   determine the vocabulary and the order of its ids (see `vocabulary`).
4. **Write.** Provisional ids are mapped to ids by a table.

The folder appears under its name when it is complete. Its content does not depend on the number of
processes, the time or the machine.

Only BPE reads the text twice, the first time to learn its merges. A source that can be read only
once is copied to a temporary file for that.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import DownloadColumn, Progress

from thinwire.console import print_line, progress_bar, warn
from thinwire.cores import num_cores
from thinwire.data.corpus import (
    META_FILE,
    SPLITS,
    TOKENIZER_FILE,
    Corpus,
    Meta,
    file_digest,
    narrowest_dtype,
    unknown_sentence,
)
from thinwire.data.encoders import Encoder
from thinwire.data.given_lines import Line, first_of, text_file, write_ids
from thinwire.data.new_folder import new_folder
from thinwire.data.recipes import Options, Recipe, find_recipe
from thinwire.data.sources import find_sources, name_of, read_blocks, spooled, total_bytes
from thinwire.data.split_file import SplitFile, SplitPart
from thinwire.data.splits import TEST, TRAIN, VALID, Division
from thinwire.data.spool import Piece, map_in_order, read_tokens, spool
from thinwire.data.tokenizer_json import train_bpe
from thinwire.data.vocabulary import Tally, Vocabulary
from thinwire.errors import UserError

DEFAULT_FRACTION = 0.01
BPE_SAMPLE_BYTES = 1 << 26  # of a larger text every n-th block is learnt from

Ids = npt.NDArray[np.unsignedinteger[Any]]
Labels = npt.NDArray[np.int64]
Divide = Callable[[int], Division]  # number of lines -> which of them go where


def prepare(
    texts: str | Path | Sequence[str | Path] | None = None,
    *,
    lines: Iterable[Line] | None = None,
    out: str | Path,
    tokenizer: str | Path = "word",
    vocab_size: int | None = None,
    min_count: int | None = None,
    vocab: str | Path | None = None,
    valid: str | Path | float | None = None,
    test: str | Path | float | None = None,
    force: bool = False,
    num_processes: int | None = None,
) -> Corpus:
    """Turn text into a data folder of token ids, and open it.

    More than a few megabytes are read by several processes, which Python spawns: a script that
    calls this needs the usual `if __name__ == "__main__":`.

    Args:
        texts: files, folders, globs, or `-` for standard input.
        lines: instead of `texts`, lines from any iterator: strings, or lists (arrays) of token ids
            of the file `tokenizer`, whose end-of-line token is added to lines that do not end in
            it. A string with line ends is several lines. The lines are copied to the disk first;
            memory does not grow with their number.
        out: the data folder to create.
        tokenizer: `word`, `space`, `bpe`, `bytes` or a file (`tokenizer.json`, a SentencePiece
            `.model`, a table of symbols and ids), whose ids are kept.
        vocab_size: largest number of ids, special ones included.
        min_count: words that occur less often in the training text are unknown.
        vocab: a file with one word per line: these words get ids, and no others.
        valid: text for validation (file, folder, glob), or the fraction of the lines to hold out.
            None: 0.01, or nothing if `test` is a text.
        test: the same for the final test.
        force: replace a data folder that exists.
        num_processes: number of processes that read; None: one per core.

    Returns:
        The data folder, open.

    Raises:
        UserError: an argument or the text is refused; `out` is then as it was.

    Examples:
        >>> import thinwire
        >>> lines = ["the cat sees a dog"] * 300 + ["a dog hears the cat"] * 300
        >>> corpus = thinwire.prepare(lines=lines, out="pets", valid=0.05)
        >>> corpus.meta.vocab_size  # six words, the unknown word, the end of a line
        8
    """
    if (texts is None) == (lines is None):
        raise UserError("prepare takes either texts or lines")
    out, tokenizer = Path(out), str(tokenizer)
    vocab = None if vocab is None else Path(vocab)
    given, first = first_of(lines) if lines is not None else (None, None)
    if given is not None and not isinstance(first, str):
        if not (vocab_size is None and min_count is None and vocab is None):
            raise UserError("lines of ids have the vocabulary of their tokenizer: give no other")
        fractions = [
            _fraction_of_ids(name, what) for name, what in (("valid", valid), ("test", test))
        ]
        with new_folder(out, force) as folder:
            write_ids(given, tokenizer, folder, valid=fractions[0], test=fractions[1])
        return _opened(out)
    valid_files, valid_fraction = _held_out("valid", valid)
    test_files, test_fraction = _held_out("test", test)
    default = 0.0 if valid_files or test_files else DEFAULT_FRACTION
    valid_fraction = default if valid is None else valid_fraction
    test_fraction = default if test is None else test_fraction
    if valid_fraction + test_fraction >= 1:
        raise UserError(
            f"--valid {valid_fraction} and --test {test_fraction} leave nothing to train on: "
            "their sum must be below 1"
        )
    train_files: list[Path] = []
    if texts is not None:
        named = [texts] if isinstance(texts, str | Path) else texts
        sources = find_sources([str(text) for text in named])
        train_files = _without(sources, [*valid_files, *test_files])
    divide_train = partial(Division.by_fraction, valid=valid_fraction, test=test_fraction)
    options = Options(vocab_size=vocab_size, min_count=min_count, vocab=vocab)
    num_processes = num_processes or num_cores()

    with new_folder(out, force) as folder, progress_bar(DownloadColumn()) as progress:
        work = folder / "work"
        work.mkdir()
        if given is not None:
            train_files = [text_file(given, work)]
        if tokenizer == "bpe":
            train_files = spooled(train_files, work)
        recipe = find_recipe(
            tokenizer,
            options,
            num_processes=num_processes,
            learn_bpe=partial(_learn_bpe, train_files, divide_train, progress),
        )
        total = total_bytes([*train_files, *valid_files, *test_files])
        advance = partial(progress.advance, progress.add_task("reading", total=total))
        read = partial(_read, recipe.make_encoder, num_processes, advance)
        divided = [read(train_files, divide_train, work / "train")]
        for split, files in ((VALID, valid_files), (TEST, test_files)):
            if files:
                divide = partial(Division.whole, split=split)
                divided.append(read(files, divide, work / SPLITS[split]))
        vocabulary = recipe.vocabulary(_count(divided[0], work))
        _write(divided, recipe, vocabulary, folder, num_processes, progress)
        shutil.rmtree(work)
    return _opened(out)


def _opened(out: Path) -> Corpus:
    """Open the data folder, and warn if many words are unknown."""
    corpus = Corpus.open(out, verify=False)
    for name, about in corpus.meta.splits.items():
        if sentence := unknown_sentence(f"the {name} split", about.unknown, about.tokens):
            warn(sentence)
    return corpus


class _Text:
    """The pieces of a text in order, and the split of each of their lines."""

    def __init__(self, pieces: Sequence[Piece], divide: Divide) -> None:
        self.pieces = pieces
        lines = [piece.num_lines - (not piece.ends_line) for piece in pieces]
        *self._first_lines, num_lines = np.cumsum([0, *lines]).tolist()
        self._division = divide(num_lines)

    def __iter__(self) -> Iterator[tuple[Piece, Labels]]:
        return map(self.labelled, range(len(self.pieces)))

    def labelled(self, number: int) -> tuple[Piece, Labels]:
        """A piece, and the split of each of its lines."""
        piece, first = self.pieces[number], self._first_lines[number]
        return piece, self._division.split_of(np.arange(first, first + piece.num_lines))


def _read(
    make_encoder: Callable[[], Encoder],
    num_processes: int,
    advance: Callable[[int], None],
    files: Sequence[Path],
    divide: Divide,
    work: Path,
) -> _Text:
    """Phases 1 and 2."""
    work.mkdir()
    pieces = list(spool(read_blocks(files, advance), make_encoder, work, num_processes))
    if not any(piece.totals.words for piece in pieces):
        raise _no_text(files)
    return _Text(pieces, divide)


def _no_text(files: Sequence[Path]) -> UserError:
    others = f" and the {len(files) - 1} files after it" if len(files) > 1 else ""
    return UserError(f"there is no text in {name_of(files[0])}{others}")


def _count(text: _Text, folder: Path) -> Tally:
    """Phase 3: count the words of the training split, with one shard in memory at a time."""
    by_shard = defaultdict(list)
    for number, piece in enumerate(text.pieces):
        by_shard[piece.shard].append(number)
    tally = Tally(folder)
    for shard, numbers in by_shard.items():
        tokens = read_tokens(shard)
        counts = np.zeros(len(tokens), dtype=np.int64)
        for piece, labels_L in map(text.labelled, numbers):
            for split, ids, _, _ in _divided(piece, labels_L):
                if split == TRAIN:
                    counts += np.bincount(ids, minlength=len(tokens))
        tally.add(tokens, counts.tolist())
    return tally


def _divided(piece: Piece, labels_L: Labels) -> Iterator[SplitPart]:
    ids = piece.read_ids()
    lines_that_end_L = labels_L if piece.ends_line else labels_L[:-1]
    num_lines_S = np.bincount(lines_that_end_L, minlength=len(SPLITS)).tolist()
    splits = np.unique(labels_L).tolist()
    if len(splits) == 1:
        yield SplitPart(splits[0], ids, np.array(piece.totals), num_lines_S[splits[0]])
        return
    lines_L3 = piece.read_lines()
    labels_N = np.repeat(labels_L, lines_L3[:, 0])
    for split in splits:
        totals = lines_L3[labels_L == split].sum(axis=0)
        yield SplitPart(split, ids[labels_N == split], totals, num_lines_S[split])


def _write(
    texts: Sequence[_Text],
    recipe: Recipe,
    vocabulary: Vocabulary,
    folder: Path,
    num_threads: int,
    progress: Progress,
) -> None:
    """Phase 4, and the other files of the folder."""
    ids = {token: id for id, token in enumerate(vocabulary.tokens)}
    unk_id = None if recipe.unk is None else ids[recipe.unk]
    dtype = narrowest_dtype(len(vocabulary.tokens))

    @lru_cache(maxsize=2 * num_threads)
    def table(shard: Path) -> Ids:
        return np.array([ids.get(token, unk_id or 0) for token in read_tokens(shard)], dtype)

    def final(labelled: tuple[Piece, Labels]) -> list[SplitPart]:
        runs = _divided(*labelled)
        return [run._replace(ids=table(labelled[0].shard)[run.ids]) for run in runs]

    with ExitStack() as stack:
        files = [stack.enter_context(SplitFile(folder / f"{split}.bin")) for split in SPLITS]
        pool = stack.enter_context(ThreadPoolExecutor(num_threads))
        pieces = [piece for text in texts for piece in text.pieces]
        size = sum(piece.totals.tokens for piece in pieces) * dtype.itemsize
        task = progress.add_task("writing", total=size)
        for runs in map_in_order(pool, final, chain(*texts), window=2 * num_threads):
            for run in runs:
                files[run.split].write(run, unk_id)
                progress.advance(task, run.ids.nbytes)
    tokenizer_file = folder / TOKENIZER_FILE
    tokenizer_file.write_text(recipe.tokenizer_json(vocabulary.tokens), encoding="utf-8")
    Meta(
        tokenizer=recipe.kind,
        tokenizer_blake2b=file_digest(tokenizer_file),
        vocab_size=len(vocabulary.tokens),
        dtype=dtype.name,
        unk_id=unk_id,
        eos_id=ids[recipe.eos],
        counts=vocabulary.counts,
        splits={split: file.meta() for split, file in zip(SPLITS, files, strict=True)},
    ).write(folder / META_FILE)


def _learn_bpe(
    files: Sequence[Path], divide: Divide, progress: Progress, vocab_size: int
) -> dict[str, Any]:
    """Learn BPE from the lines of the training split, or from an even sample of them."""
    task = progress.add_task("learning BPE", total=total_bytes(files))
    num_lines = num_bytes = 0
    for block in read_blocks(files, lambda _: None):
        num_lines += block.data.count(b"\n")
        num_bytes += len(block.data)
    if not num_lines:
        raise _no_text(files)
    division = divide(num_lines)
    every = -(-num_bytes // BPE_SAMPLE_BYTES)

    def lines() -> Iterator[str]:
        first = 0
        for number, block in enumerate(read_blocks(files, partial(progress.advance, task))):
            if number % every == 0:
                text = block.text().split("\n")
                labels_L = division.split_of(np.arange(first, first + len(text)))
                yield from (text[line] for line in np.flatnonzero(labels_L == TRAIN))
            first += block.data.count(b"\n")

    return train_bpe(lines(), vocab_size)


def _fraction_of_ids(name: str, what: str | Path | float | None) -> float:
    files, fraction = _held_out(name, what)
    if files:
        raise UserError(f"--{name} {what} is a text, and lines of ids are held out by a fraction")
    return DEFAULT_FRACTION if what is None else fraction


def _held_out(name: str, what: str | Path | float | None) -> tuple[list[Path], float]:
    """The files of a held-out split, or the fraction to cut off."""
    if what is None:
        return [], 0.0
    if isinstance(what, Path) or (isinstance(what, str) and Path(what).exists()):
        return find_sources([str(what)]), 0.0
    try:
        fraction = float(what)
    except ValueError:
        return find_sources([str(what)]), 0.0
    if not 0 <= fraction < 1:
        raise UserError(
            f"--{name} {what} is no file, and as a fraction it must be from 0 to below 1"
        )
    return [], fraction


def _without(files: Sequence[Path], held_out: Iterable[Path]) -> list[Path]:
    """The training files without those that are held out; says which these are."""
    held = {file.resolve() for file in held_out}
    left = [file for file in files if file.resolve() not in held]
    if not left:
        raise UserError(
            f"{files[0]} is held out with --valid or --test: nothing is left to train on"
        )
    for file in files:
        if file.resolve() in held:
            print_line(f"{file} is held out: not trained on")
    return left
