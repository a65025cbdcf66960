"""One bad command line, and what it reads, from one seed."""

from __future__ import annotations

import json
import os
import random
import resource
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from benchmarks.faults.bases import TOKENIZERS
from benchmarks.faults.spoil import (
    EDGES,
    FLAG_VALUES,
    NAMES,
    foreign,
    spoilt,
    spoilt_json,
    toml_value,
)
from thinwire.cli.app import arguments_of, build
from thinwire.cli.spelling import flags

# What would start processes, each of which takes seconds, gets only values that are refused or 1.
ONE_AT_MOST = ("--workers", "--run.workers", "--exchange.servers")
FEW = ("0", "1", "-1", "nan", "1.5", "", "x", "9" * 30)
FORMATS = ("onnx", "hf", "icefall", "words")
WEIGHTS = {
    "prepare": 22,
    "train": 20,
    "eval": 12,
    "score": 12,
    "generate": 9,
    "report": 8,
    "adapt": 8,
    "next": 5,
    "rescore": 8,
    "export": 4,
    "plan": 2,
    "serve": 3,
    "work": 2,
    "fetch": 2,
    "demo": 1,
    "completion": 1,
    "": 2,
}
WAYS = {
    "flags": 22,
    "inputs": 34,
    "names": 10,
    "settings": 12,
    "limits": 10,
    "interrupt": 10,
    "argv": 2,
}
# What onnxruntime leaves when it is imported: a number of its own session.
ONNXRUNTIME_SESSION = "tmp/.ses"
HELPERS = (".tmp", ".new", ".old", ".lock", ".partial", ".part")


@dataclass
class Trial:
    """A command line, what is around it, and what it may leave.

    Attributes:
        seed: all of it follows from this.
        verb: of the command line.
        way: what is bad about it.
        tokens: the command line.
        note: what was spoilt.
        stdin: what stands on standard input.
        stdout: a file, a full device, or a pipe that nobody reads.
        limits: for `resource.setrlimit`.
        as_nobody: run as a user who may write nothing.
        signal_after: when it gets Ctrl+C.
        environment: variables besides this process's own.
        before: every file that is there before.
    """

    seed: int
    verb: str
    way: str
    tokens: list[str]
    note: str = ""
    stdin: bytes = b""
    stdout: str = "file"
    limits: dict[int, int] = field(default_factory=dict)
    as_nobody: bool = False
    signal_after: tuple[float, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    before: frozenset[str] = frozenset()

    def describe(self) -> str:
        """In a line that a terminal can show."""
        line = f"{self.way}: thinwire {shlex.join(self.tokens)[:400]}"
        return repr(f"{line} ({self.note})" if self.note else line)[1:-1]

    def open_stdout(self, file: Path) -> int:
        """A descriptor for standard output."""
        if self.stdout == "full":
            return os.open("/dev/full", os.O_WRONLY)
        if self.stdout == "closed":
            reading, writing = os.pipe()
            os.close(reading)
            return writing
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def left_behind(self, folder: Path) -> list[str]:
        """Files that no command should leave: temporary ones, locks, and parts of a data folder."""
        found = sorted(_files(folder) - self.before - {ONNXRUNTIME_SESSION})
        odd = [
            name for name in found if Path(name).name.endswith(HELPERS) or name.startswith("tmp/")
        ]
        odd += [name for name in found if Path(name).name == "lock"]
        made = {Path(name).parts[1] for name in found if name.startswith("cwd/")}
        if self.verb == "prepare" and "new" in made and not (folder / "cwd/new/meta.json").exists():
            odd.append("cwd/new without meta.json")
        if self.verb in ("eval", "score", "generate", "next", "plan", "work", "completion"):
            asked = {token.removeprefix("--out=") for token in self.tokens}
            odd += [
                name
                for name in found
                if name.startswith("cwd/") and name.removeprefix("cwd/") not in asked
            ]
        return [repr(name) for name in odd]

    def clean_up(self, folder: Path) -> None:
        """Remove its folder."""
        shutil.rmtree(folder, ignore_errors=True)


def make_trial(seed: int, bases: Path, folder: Path, *, own_process: bool) -> Trial:
    """The trial of a seed, with its files in `folder`."""
    rng = random.Random(seed)
    for part in ("cwd", "tmp", "home"):
        (folder / part).mkdir(parents=True)
    verb = rng.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
    way = rng.choices([*WAYS], [*WAYS.values()])[0]
    cwd, kind = folder / "cwd", rng.choice(TOKENIZERS)
    trial = Trial(seed, verb, way, good_tokens(verb, cwd, bases, kind, rng))
    trial.environment = {
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home"),
        # Nothing may be downloaded.
        **dict.fromkeys(
            ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9"
        ),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "home"),
        "PIP_RETRIES": "0",
        "PIP_NO_INDEX": "1",
    }
    if verb in ("score", "prepare", "eval", "next", "rescore"):
        trial.stdin = (bases / "short.txt").read_bytes()
    _MAKERS[way](trial, cwd, bases, rng)
    if own_process:
        trial.limits, trial.as_nobody = {}, False
        trial.signal_after = (rng.uniform(0.0, 5.0), 9.0)
        trial.environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        trial.stdout = rng.choice(["file", "closed"])
    trial.before = frozenset(_files(folder))
    return trial


def good_tokens(verb: str, cwd: Path, bases: Path, kind: str, rng: random.Random) -> list[str]:
    """A command line that works, and the files it needs."""

    def take(name: str, source: str) -> str:
        path = bases / source
        if path.is_dir():
            shutil.copytree(path, cwd / name)
        else:
            shutil.copyfile(path, cwd / name)
        return name

    small = ["--model.width", "8", "--loss.samples", "8", "--data.batch", "2", "--data.length", "5"]
    small += ["--tokens", "60", "--threads", "1"]
    packed = rng.choice(["text.txt", "text.txt", "text.gz", "text.xz", "text.zst"])
    match verb:
        case "prepare":
            tokens = ["prepare", take(packed, packed), "--out", "new"]
            tokens += rng.choice(
                [
                    *([], ["--tokenizer", "space"], ["--tokenizer", "bytes"], ["--valid", "0.1"]),
                    *(["--tokenizer", "bpe", "--vocab-size", "270"], ["--vocab", "vocab.txt"]),
                    *(["--tokenizer", "tokenizer.json"], ["--valid", "held.txt"]),
                ]
            )
            if "vocab.txt" in tokens:
                take("vocab.txt", "vocab.txt")
            if "tokenizer.json" in tokens:
                take("tokenizer.json", f"data-{kind}/tokenizer.json")
            if "held.txt" in tokens:
                take("held.txt", "short.txt")
            return tokens
        case "train":
            data = take("data", f"data-{kind}")
            if rng.random() < 0.4:
                take("run", f"run-{kind}")
                _move_corpus(cwd / "run", cwd / "data")
                return ["train", data, "--out", "run", "--resume", "--tokens", "1000"]
            return ["train", data, "--out", "new", *small]
        case "eval":
            take("run", f"run-{kind}")
            take("data", f"data-{kind}")
            how = rng.choice([["--data", "data"], ["--text", packed], ["--text", "-"]])
            if packed in how:
                take(packed, packed)
            further = further_flags("eval", kind, take, rng)
            return ["eval", "run", *how, *further, *rng.choice([[], ["--json"]])]
        case "score":
            take("run", f"run-{kind}")
            text = rng.choice(["-", take(packed, packed)])
            return ["score", "run", text, *further_flags("score", kind, take, rng)]
        case "next":
            take("run", f"run-{kind}")
            how = rng.choice([["--prompt", "the cat"], ["--prompts", "-"], ["--words-only"]])
            return ["next", "run", "--top", "3", *how, *rng.choice([[], ["--json"]])]
        case "rescore":
            take("run", f"run-{kind}")
            tokens = ["rescore", "run", take("lists", "lists"), "--out", "new"]
            if rng.random() < 0.5:
                return [*tokens, *further_flags("rescore", kind, take, rng)]
            tokens += ["--scores", take("costs", "costs")]
            return tokens + rng.choice(
                [["--weight", "0.5"], ["--tune", take("said", "said")], ["--length-bonus", "1"]]
            )
        case "export":
            take("run", f"run-{kind}")
            return ["export", "run", "--to", rng.choice(FORMATS), "--out", "new"]
        case "generate":
            take("run", f"run-{kind}")
            return ["generate", "run", "--tokens", "5", "--prompt", rng.choice(["", "the cat"])]
        case "report":
            take("run", f"run-{kind}")
            return ["report", "run", "--out", "new.html"]
        case "adapt":
            take("run", "run-word")
            take("short.txt", "short.txt")
            method = rng.choice(["continue", "layers"])
            return [
                "adapt",
                "run",
                "short.txt",
                "--out",
                "new",
                "--method",
                method,
                "--tokens",
                "40",
            ]
        case "plan":
            return ["plan", take("data", f"data-{kind}"), *small]
        case "serve":
            data = take("data", f"data-{kind}")
            return ["serve", data, "--out", "new", "--listen", "127.0.0.1:0", *small]
        case "work":
            return ["work", take("data", f"data-{kind}"), "--servers", "127.0.0.1:9"]
        case "fetch":
            return ["fetch", "shakespeare", "--out", "new"]
        case "demo":
            return ["demo", "--out", "new", "--seconds", "1"]
        case "completion":
            return ["completion", rng.choice(["bash", "zsh", "fish"])]
    return []


def further_flags(
    verb: str, kind: str, take: Callable[[str, str], str], rng: random.Random
) -> list[str]:
    """What makes more of a model than it is: often nothing."""
    ways = [[], ["--average", "2"]]
    if verb != "rescore":
        ways += [["--cache", "20"], ["--dynamic", "2"]]
    if kind == "word":
        ways.append(["--arpa", "words.arpa", *rng.choice([[], ["--arpa-weight", "0.3"]])])
    flags = rng.choice(ways)
    if "--arpa" in flags:
        take("words.arpa", "words.arpa")
    return flags if verb != "rescore" or "--average" not in flags else []


def _move_corpus(run: Path, data: Path) -> None:
    file = run / "config.toml"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines = [f"path = {json.dumps(str(data))}" if x.startswith("path =") else x for x in lines]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


# What is bad


def _bad_flags(trial: Trial, cwd: Path, bases: Path, rng: random.Random) -> None:
    if not trial.verb:
        trial.tokens = rng.choices(FLAG_VALUES, k=rng.randrange(3))
        return
    known = flags(arguments_of(build([trial.verb]), trial.verb))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice([*known, rng.choice([*known, "--x"])[:-1], "--help", "-h", "--version"])
        value = rng.choice(FEW if name in ONE_AT_MOST else FLAG_VALUES)
        given = rng.choice([[name, value], [f"{name}={value}"], [name], [f"--no-{name[2:]}"]])
        at = [i for i, token in enumerate(trial.tokens) if token == name]
        if at and rng.random() < 0.8:
            trial.tokens[at[0] : at[0] + 2] = given
        else:
            place = rng.choice([1, len(trial.tokens)])
            trial.tokens[place:place] = given
    if rng.random() < 0.1:
        trial.tokens[rng.randrange(len(trial.tokens))] = rng.choice(FLAG_VALUES)


def _bad_argv(trial: Trial, cwd: Path, bases: Path, rng: random.Random) -> None:
    way = rng.random()
    if way < 0.3:
        rng.shuffle(trial.tokens)
    elif way < 0.6 and trial.tokens:
        del trial.tokens[rng.randrange(len(trial.tokens))]
    elif way < 0.8:
        trial.tokens += rng.choices(FLAG_VALUES, k=2)
    else:
        trial.tokens = [token[: rng.randrange(len(token) + 1)] for token in trial.tokens]


def _bad_inputs(trial: Trial, cwd: Path, bases: Path, rng: random.Random) -> None:
    """Spoil a file that the command reads, or put another one or another folder in its place."""
    inputs = [path for path in sorted(cwd.iterdir()) if path.name in trial.tokens]
    if trial.stdin and ("-" in trial.tokens or not inputs):
        trial.stdin = spoilt(trial.stdin, rng, rng.randbytes(100))
        trial.note = "stdin spoilt"
        return
    if not inputs:
        return
    path = rng.choice(inputs)
    if rng.random() < 0.12:
        _replace(path, rng)
        trial.note = f"{path.name} is of another program"
        return
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    file = rng.choice(files)
    trial.note = f"{file.relative_to(cwd)} spoilt"
    way = rng.random()
    if way < 0.06:
        file.unlink()
    elif way < 0.1:
        file.unlink()
        file.mkdir()
    elif way < 0.13:
        file.unlink()
        file.symlink_to(rng.choice(["nowhere", file.name, "/dev/null", "/proc/self/mem"]))
    elif way < 0.55 and file.suffix in (".json", ".toml", ".jsonl"):
        _spoil_meaning(file, rng)
    else:
        other = rng.choice(files).read_bytes()
        file.write_bytes(spoilt(file.read_bytes(), rng, other))
    if rng.random() < 0.6:
        _believe(path)


def _replace(path: Path, rng: random.Random) -> None:
    was_folder = path.is_dir()
    if was_folder:
        shutil.rmtree(path)
    else:
        path.unlink()
    files = foreign(rng)
    if was_folder or rng.random() < 0.3:
        path.mkdir()
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    else:
        path.write_bytes(next(iter(files.values()), b""))


def _spoil_meaning(file: Path, rng: random.Random) -> None:
    """Change a value in a file of JSON or TOML, which still can be read."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        file.write_text(json.dumps(spoilt_json(json.loads(text), rng)), encoding="utf-8")
        return
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    if file.suffix == ".jsonl":
        lines[at] = json.dumps(spoilt_json(json.loads(lines[at]), rng))
    elif " = " in lines[at]:
        lines[at] = f"{lines[at].partition(' = ')[0]} = {toml_value(rng.choice(EDGES))}"
    else:
        lines[at] = rng.choice(
            ["", "[x]", "[run]", "[[run]]", "x = 1", lines[at] + "\n" + lines[at]]
        )
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def _believe(folder: Path) -> None:
    """Renew the checksums, so that what is wrong has to be seen by its meaning."""
    sums = folder / "meta.json"
    try:
        if sums.exists():
            content = json.loads(sums.read_text(encoding="utf-8"))
            content["tokenizer_blake2b"] = _digest(folder / "tokenizer.json")
            for name, split in content["splits"].items():
                split["blake2b"] = _digest(folder / f"{name}.bin")
            content["fingerprint"] = ""
            sums.write_text(json.dumps(content), encoding="utf-8")
            known = {key: value for key, value in content.items() if key != "fingerprint"}
            text = json.dumps(known, sort_keys=True, ensure_ascii=True)
            content["fingerprint"] = blake2b(text.encode(), digest_size=16).hexdigest()
            sums.write_text(json.dumps(content), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass


def _digest(file: Path) -> str:
    return blake2b(file.read_bytes(), digest_size=16).hexdigest()


def _bad_names(trial: Trial, cwd: Path, bases: Path, rng: random.Random) -> None:
    """Rename what the command reads, or makes, to something that needs quoting."""
    named = [t for t in trial.tokens[1:] if (t and (cwd / t).exists()) or t in ("new", "new.html")]
    if not named:
        trial.tokens += [rng.choice(NAMES)]
        return
    token, name = rng.choice(named), rng.choice(NAMES)
    suffix = Path(token).suffix if rng.random() < 0.5 else ""
    name = os.fsdecode(os.fsencode(name)) + suffix
    try:
        if (cwd / token).exists():
            (cwd / token).rename(cwd / name)
    except OSError:
        name = name[:60]
        (cwd / token).rename(cwd / name)
    trial.note = f"{token} is called {name!r}"
    trial.tokens = [name if t == token else t for t in trial.tokens]
    if rng.random() < 0.3:  # and is broken, so that a sentence has to say its name
        trial.note += ", and empty"
        if os.path.isfile(cwd / name):  # not Path: a name may be too long to ask for
            (cwd / name).write_bytes(b"\xff\xfe")
        elif os.path.isdir(cwd / name):
            for file in (cwd / name).iterdir():
                file.write_bytes(b"") if file.is_file() else None


def _bad_settings(trial: Trial, cwd: Path, bases: Path, rng: random.Random) -> None:
    """A settings file with values of wrong types and at the edges."""
    if trial.verb not in ("train", "serve", "plan"):
        return _bad_inputs(trial, cwd, bases, rng)
    text = (bases / "run-word" / "config.toml").read_text(encoding="utf-8")
    lines = text.partition("[corpus]")[0].splitlines()
    lines = [line for line in lines if line.partition(" ")[0] not in ("workers", "servers")]
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.choice([i for i, line in enumerate(lines) if " = " in line])
        key = lines[at].partition(" = ")[0]
        lines[at] = f"{key} = {toml_value(rng.choice(EDGES))}"
        trial.note += f"{lines[at][:80]}; "
    content = ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
    if rng.random() < 0.25:
        trial.note = "the settings file is spoilt"
        content = rng.choice(
            [spoilt(content, rng), b"a = " + b"[" * 100_000, b"a" + b".a" * 100_000 + b" = 1"]
        )
    (cwd / "settings.toml").write_bytes(content)
    trial.tokens = [t for t in trial.tokens if t not in ("--model.width", "8", "--loss.samples")]
    trial.tokens += ["--config", "settings.toml"]


def _limited(trial: Trial, cwd: Path, bases: Path, rng: random.Random) -> None:
    """A full disk, no descriptors, a folder that may not be written, a closed pipe."""
    way = rng.choice(["size", "files", "nobody", "full", "closed", "file", "system", "readonly"])
    trial.note = way
    if way == "size":
        trial.limits = {
            resource.RLIMIT_FSIZE: rng.choice([0, 1, 100, 1000, rng.randrange(100_000)])
        }
    elif way == "files":
        trial.limits = {resource.RLIMIT_NOFILE: rng.randrange(3, 30)}
    elif way in ("full", "closed"):
        trial.stdout = way
    elif way in ("nobody", "readonly"):
        # Those start processes of their own, which that user may be unable to.
        trial.as_nobody = os.geteuid() == 0 and trial.verb not in ("fetch", "demo")
        cwd.chmod(0o755)
        if way == "readonly":  # the folder may be written, but not what is in it
            cwd.chmod(0o777)
            secret = rng.choice([p for p in cwd.rglob("*")] or [cwd])
            secret.chmod(0o000)
            trial.note = f"{secret.relative_to(cwd)} may not be read"
        (cwd.parent / "tmp").chmod(0o777)
        (cwd.parent / "home").chmod(0o777)
    else:
        (cwd / "file").write_text("x", encoding="utf-8")
        places = ["file/new", "file"] if way == "file" else ["/proc/new", "/dev/null/x", "/sys/new"]
        out = rng.choice(places)
        trial.tokens = [out if t in ("new", "new.html") else t for t in trial.tokens]


def _interrupted(trial: Trial, cwd: Path, bases: Path, rng: random.Random) -> None:
    trial.signal_after = (rng.uniform(0.001, rng.choice([0.05, 0.2, 1.0])), 4.0)


Maker = Callable[[Trial, Path, Path, random.Random], Any]
_MAKERS: dict[str, Maker] = {
    "flags": _bad_flags,
    "inputs": _bad_inputs,
    "names": _bad_names,
    "settings": _bad_settings,
    "limits": _limited,
    "interrupt": _interrupted,
    "argv": _bad_argv,
}


def _files(folder: Path) -> set[str]:
    found = set()
    for place, folders, files in os.walk(folder):
        if Path(place).name == ".io":
            continue
        found |= {os.path.relpath(os.path.join(place, name), folder) for name in (*folders, *files)}
    return found
