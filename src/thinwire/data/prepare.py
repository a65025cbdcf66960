"""Raw text to a data folder, in memory that does not grow with the text, on all cores.

1. **Read.** Processes turn blocks of lines into provisional ids (see `encoders`), which go to
   temporary files beside the folder, four bytes a token.
2. **Divide.** Now the number of lines is known, and with it which of them are held out.
3. **Count.** The training split's provisional ids are counted; the counts by word decide on the
   vocabulary and the order of its ids (see `vocabulary`).
4. **Write.** Provisional ids become ids, by one table look-up each.

The folder appears under its name when it is complete. Nothing in it depends on the number of
processes, the time or the place.

Only BPE reads the text twice, once to learn its merges; what can be read only once is copied to a
temporary file for that.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.progress import DownloadColumn, Progress

from thinwire.console import print_line, progress_bar, warn
from thinwire.data.corpus import (
    META_FILE,
    SPLITS,
    TOKENIZER_FILE,
    Corpus,
    Meta,
    SplitMeta,
    file_digest,
    narrowest_dtype,
    unknown_sentence,
)
from thinwire.data.encoders import Encoder
from thinwire.data.recipes import Options, Recipe, find_recipe
from thinwire.data.sources import find_sources, name_of, read_blocks, spooled, total_bytes
from thinwire.data.splits import TEST, TRAIN, VALID, Division
from thinwire.data.spool import Piece, map_in_order, read_tokens, spool
from thinwire.data.tokenizers import train_bpe
from thinwire.data.vocabulary import Tally, Vocabulary
from thinwire.errors import UserError
from thinwire.interrupts import interrupt_later
from thinwire.locks import only_writer

DEFAULT_FRACTION = 0.01
BPE_SAMPLE_BYTES = 1 << 26  # of a larger text every n-th block is learnt from

Ids = npt.NDArray[np.unsignedinteger[Any]]
Labels = npt.NDArray[np.int64]
Divide = Callable[[int], Division]  # number of lines -> which of them go where


def prepare(
    texts: Sequence[str],
    *,
    out: Path,
    tokenizer: str = "word",
    vocab_size: int | None = None,
    min_count: int | None = None,
    vocab: Path | None = None,
    valid: str | float | None = None,
    test: str | float | None = None,
    force: bool = False,
    num_processes: int | None = None,
) -> Corpus:
    """Write the data folder `out`, and open it.

    `texts` are files, folders, globs or `-`; `tokenizer` is `word`, `space`, `bpe`, `bytes` or a
    `tokenizer.json`; `valid` and `test` are a file (folder, glob) or the fraction of the lines to
    hold out, by default 0.01, or nothing where the other one is a file. `force` replaces a data
    folder.

    More than a few megabytes are read by `num_processes` processes (default: one a core), which
    Python spawns: a script that calls this needs the usual `if __name__ == "__main__":`.

    Raises UserError for what the user can mend; `out` is untouched then.
    """
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
    train_files = _without(find_sources(texts), [*valid_files, *test_files])
    divide_train = partial(Division.by_fraction, valid=valid_fraction, test=test_fraction)
    options = Options(vocab_size=vocab_size, min_count=min_count, vocab=vocab)
    num_processes = num_processes or _num_cores()

    with _new_folder(out, force) as folder, progress_bar(DownloadColumn()) as progress:
        work = folder / "work"
        work.mkdir()
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
    corpus = Corpus.open(out, verify=False)
    for name, about in corpus.meta.splits.items():
        if sentence := unknown_sentence(f"the {name} split", about.unknown, about.tokens):
            warn(sentence)
    return corpus


class _Text:
    """Pieces in order, and the split of each of their lines."""

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
    """Phase 3: the words of the training split; shard by shard, so that memory holds one."""
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


class _Run(NamedTuple):
    """What one piece gives to one split."""

    split: int
    ids: Ids
    totals: npt.NDArray[np.int64]
    """As `Totals`."""
    num_lines: int
    """Lines that end here."""


def _divided(piece: Piece, labels_L: Labels) -> Iterator[_Run]:
    ids = piece.read_ids()
    lines_that_end_L = labels_L if piece.ends_line else labels_L[:-1]
    num_lines_S = np.bincount(lines_that_end_L, minlength=len(SPLITS)).tolist()
    splits = np.unique(labels_L).tolist()
    if len(splits) == 1:
        yield _Run(splits[0], ids, np.array(piece.totals), num_lines_S[splits[0]])
        return
    lines_L3 = piece.read_lines()
    labels_N = np.repeat(labels_L, lines_L3[:, 0])
    for split in splits:
        totals = lines_L3[labels_L == split].sum(axis=0)
        yield _Run(split, ids[labels_N == split], totals, num_lines_S[split])


def _write(
    texts: Sequence[_Text],
    recipe: Recipe,
    vocabulary: Vocabulary,
    folder: Path,
    num_threads: int,
    progress: Progress,
) -> None:
    """Phase 4, and everything else that the folder holds."""
    ids = {token: id for id, token in enumerate(vocabulary.tokens)}
    unk_id = None if recipe.unk is None else ids[recipe.unk]
    dtype = narrowest_dtype(len(vocabulary.tokens))

    @lru_cache(maxsize=2 * num_threads)
    def table(shard: Path) -> Ids:
        return np.array([ids.get(token, unk_id or 0) for token in read_tokens(shard)], dtype)

    def final(labelled: tuple[Piece, Labels]) -> list[_Run]:
        runs = _divided(*labelled)
        return [run._replace(ids=table(labelled[0].shard)[run.ids]) for run in runs]

    with ExitStack() as stack:
        files = [stack.enter_context(_SplitFile(folder / f"{split}.bin")) for split in SPLITS]
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


class _SplitFile:
    """A `.bin` file that grows, and what is known about it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = blake2b(digest_size=16)
        self._totals = np.zeros(3, dtype=np.int64)
        self._num_lines = self._num_unknown = 0

    def __enter__(self) -> _SplitFile:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, run: _Run, unk_id: int | None) -> None:
        data = run.ids.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._totals += run.totals
        self._num_lines += run.num_lines
        if unk_id is not None:
            self._num_unknown += int(np.count_nonzero(run.ids == unk_id))

    def meta(self) -> SplitMeta:
        tokens, words, characters = self._totals.tolist()
        return SplitMeta(
            tokens=tokens,
            unknown=self._num_unknown,
            words=words,
            characters=characters,
            lines=self._num_lines,
            blake2b=self._digest.hexdigest(),
        )


def _learn_bpe(
    files: Sequence[Path], divide: Divide, progress: Progress, vocab_size: int
) -> dict[str, Any]:
    """BPE from the lines of the training split, or an even sample of them."""
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


def _held_out(name: str, what: str | float | None) -> tuple[list[Path], float]:
    """The files of a held-out split, or the fraction to cut off."""
    if what is None:
        return [], 0.0
    if isinstance(what, str) and Path(what).exists():
        return find_sources([what]), 0.0
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
    """The training files: what is held out is left out, aloud."""
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


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when all has gone well."""
    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give --out another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(out.with_name(f".{out.name}.lock"), str(out)) as alone:
        if alone:
            _clear_leftovers(out)
        with _filled(out, force) as folder:
            yield folder


def _clear_leftovers(out: Path) -> None:
    """Tidy up after a prepare of this folder that was killed; that none runs is known."""
    leftover = re.compile(rf"\.{re.escape(out.name)}\.\d+\.(new|old)")
    for path in out.parent.iterdir():
        if not (found := leftover.fullmatch(path.name)):
            continue
        if found[1] == "old" and not out.exists():  # killed while it replaced what was there
            path.rename(out)
        else:
            shutil.rmtree(path)


@contextmanager
def _filled(out: Path, force: bool) -> Iterator[Path]:
    if out.is_dir() and any(out.iterdir()):
        if not (out / META_FILE).is_file():
            raise UserError(f"{out} is no data folder and not empty: give --out another name")
        if not force:
            raise UserError(f"{out} holds data already: --force replaces it")
    folder = out.with_name(f".{out.name}.{os.getpid()}.new")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        folder.mkdir()
        yield folder
        for path in (*folder.iterdir(), folder):
            _fsync(path)
        if out.exists():
            out.rename(old)
        folder.rename(out)
        _fsync(out.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk of {out} is full: while it works, prepare needs four bytes a token "
                "there, beside the folder itself"
            ) from error
        raise
    finally:
        with interrupt_later():  # Ctrl+C often comes twice
            if old.exists() and not out.exists():
                old.rename(out)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
