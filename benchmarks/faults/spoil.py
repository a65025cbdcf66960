"""Ways to spoil bytes, JSON, TOML and names; what the campaigns against bad input share."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import sqlite3
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

EDGES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64),
    *(10**30, -(10**30), 0.0, -0.0, 0.5, 1.0, 1.5, 1e-310, 1e-30, 1e30, 1e308, -1e308),
    *(float("nan"), float("inf"), -float("inf"), True, False, None, "", "0", "1", "nan", " "),
    *("\n", "\x00", "\x1b[31m", "[red]x[/red]", "é", "日本", "💥", "../..", "/", "a" * 5000),
    *([], {}, [[]], {"a": 1}, [1, 2, 3], ["x"], {"": {}}),
)
FLAG_VALUES = (
    *("", " ", "0", "1", "2", "-1", "-0", "+1", "1.5", "0.5", "1e3", "1e-310", "1e400", "-1e400"),
    *(
        "nan",
        "inf",
        "-inf",
        "NaN",
        "0x10",
        "1_000",
        "9" * 30,
        "-" + "9" * 30,
        "9223372036854775807",
    ),
    *("9223372036854775808", "2147483648", "4294967296", "true", "false", "none", "None", "null"),
    *(
        "auto",
        "cpu",
        "cuda",
        "mps",
        "word",
        "bpe",
        "bytes",
        "space",
        "-",
        "--",
        "---",
        "a=b",
        "=",
        ",",
    ),
    *(
        "[red]x[/red]",
        "[/]",
        "a\nb",
        "a\tb",
        "\x1b[2J",
        "é",
        "日本",
        "💥",
        "\u202e",
        "\udcff",
        "x" * 300,
    ),
    *(
        "x" * 5000,
        "../..",
        "/",
        ".",
        "..",
        "~",
        "/dev/null",
        "/proc/self/mem",
        "/proc/version",
        "*",
    ),
    *(
        "[",
        "**/*",
        "a b",
        "'",
        '"',
        "\\",
        "$(x)",
        "%s",
        "{0}",
        "٣",
        "½",
        "1,5",
        "1 000",
        "1e",
        ".",
        "1.0",
    ),
)
NAMES = (
    *(
        "plain",
        "with space",
        "[brackets]",
        "[red]markup",
        "new\nline",
        "tab\t",
        "naïve",
        "日本語",
    ),
    *(
        "💥",
        "\u202egnp",
        "'quote",
        '"double',
        "star*",
        "quest?",
        "back\\slash",
        "-dash",
        "--flag",
        "~",
    ),
    *(
        " lead",
        "trail ",
        ".hidden",
        "a=b",
        "x" * 200,
        "x" * 255,
        "x" * 256,
        "\udcff\udcfe",
        "\x1b[31mred",
    ),
    *("CON", "a,b", "a;b", "$HOME", "%d", "{x}", "#", "a&b", "\x7f", "\r", "e\u0301"),
)


def spoilt(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """These bytes with one thing wrong: cut, flipped, spliced, doubled, of another encoding."""
    if not data:
        return rng.randbytes(rng.randrange(1, 50))
    at, length = rng.randrange(len(data)), rng.choice([1, 2, 7, 64, 1000])
    ways: list[Callable[[], bytes]] = [
        lambda: data[:at],
        lambda: data[at:],
        lambda: b"",
        lambda: _flipped(data, rng, 1),
        lambda: _flipped(data, rng, rng.choice([2, 8, 64])),
        lambda: data[:at] + data[at + length :],
        lambda: data[:at] + rng.randbytes(length) + data[at:],
        lambda: data[:at] + other[rng.randrange(len(other) + 1) :],
        lambda: data + data,
        lambda: data + rng.randbytes(length),
        lambda: data[:at] + bytes(length) + data[at + length :],
        lambda: rng.randbytes(len(data) if len(data) < 5000 else 5000),
        lambda: bytes(min(len(data), 5000)),
        lambda: data[::-1],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("utf-8", "replace").encode("utf-16"),
        lambda: data.decode("utf-8", "replace").encode("utf-8-sig"),
        lambda: data.decode("latin-1").encode("utf-8"),
        lambda: data.decode("utf-8", "replace").encode("latin-1", "xmlcharrefreplace"),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.replace(b"\n", b"\r"),
        lambda: data.replace(b" ", b"\x00", 1),
    ]
    return rng.choice(ways)()


def _flipped(data: bytes, rng: random.Random, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def spoilt_json(content: Any, rng: random.Random) -> Any:
    """JSON that differs in one value, or lacks one, or has one more."""
    content = json.loads(json.dumps(content))
    spots = list(_spots(content))
    if not spots or rng.random() < 0.03:
        return rng.choice(EDGES)
    # Long lists would otherwise be hit nearly always.
    by_kind: dict[tuple[str, ...], list[Any]] = {}
    for path, parent, key in spots:
        kind = tuple("#" if isinstance(part, int) else part for part in path)
        by_kind.setdefault(kind[:4], []).append((parent, key))
    parent, key = rng.choice(by_kind[rng.choice(sorted(by_kind))])
    way = rng.random()
    if way < 0.2:
        del parent[key]
    elif way < 0.3 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    elif way < 0.4 and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif way < 0.6 and isinstance(parent[key], int | float):
        parent[key] = parent[key] + rng.choice([1, -1, 0.5, 10**6])
    else:
        parent[key] = rng.choice(EDGES)
    return content


def _spots(content: Any, path: tuple[Any, ...] = ()) -> Any:
    items: Any = ()
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, list):
        items = list(enumerate(content))
    for key, value in items:
        yield (*path, key), content, key
        yield from _spots(value, (*path, key))


def toml_value(value: Any) -> str:
    """A value as TOML; what TOML has not (null) as something that it refuses."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value).replace("e+", "e")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value)


def foreign(rng: random.Random) -> dict[str, bytes]:
    """Files of a folder that belongs to some other program."""
    text = b"a line of text\n" * 3
    makers: list[Callable[[], dict[str, bytes]]] = [
        lambda: {"archive.zip": _zip(text)},
        lambda: {"archive.tar": _tar(text)},
        lambda: {"data.pkl": pickle.dumps({"a": [1, 2]})},
        lambda: {"base.sqlite": _sqlite()},
        lambda: {"x.png": b"\x89PNG\r\n\x1a\n" + rng.randbytes(50)},
        lambda: {"pytorch_model.bin": _zip(b"\x80\x02}q\x00."), "config.json": b'{"a": 1}'},
        lambda: {"program": b"\x7fELF" + rng.randbytes(100)},
        lambda: {"text.gz": gzip.compress(text)[: rng.randrange(30)]},
        lambda: {"text.xz": lzma.compress(text)[: rng.randrange(60)]},
        lambda: {"text.zst": bz2.compress(text)},
        lambda: {"text.gz": lzma.compress(text)},
        lambda: {"doc.html": b"<html>" + text, "table.csv": b"a,b\r\n1,2\r\n"},
        lambda: {"config.toml": b"[project]\nname = 'x'\n", "meta.json": b"[]"},
        lambda: {"meta.json": b"{}", "train.bin": b"", "tokenizer.json": b"{}"},
        lambda: {
            "config.toml": b"",
            "metrics.jsonl": b"{}\n[]\nnull\n1\n",
            "step-3/state.json": b"",
        },
        lambda: {".git/HEAD": b"ref: refs/heads/main\n", "sub/deep/er/file": text},
        lambda: {"latin.txt": "é\n".encode("latin-1") * 3},
        lambda: {},
    ]
    return rng.choice(makers)()


def _zip(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("data", content)
    return out.getvalue()


def _tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        about = tarfile.TarInfo("data")
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    return out.getvalue()


def _sqlite() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x")
        base = sqlite3.connect(file)
        base.execute("create table t (a)")
        base.commit()
        base.close()
        return file.read_bytes()
