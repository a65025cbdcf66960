"""`thinwire train` from outside: every mistake is one sentence, and exit status 2."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from thinwire.cli.app import main
from thinwire.config import RunConfig
from thinwire.exchange.config import ExchangeConfig
from thinwire.runs.folder import CONFIG_FILE, RunFolder

Capture = pytest.CaptureFixture[str]
SMALL = [
    "--threads",
    "1",
    "--model.width",
    "16",
    "--loss.samples",
    "20",
    "--data.batch",
    "4",
    "--data.length",
    "7",
]


def train(*args: object) -> int:
    return main(["train", *map(str, args)])


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def toml(text: str) -> str:
    Path("a.toml").write_text(text, encoding="utf-8")
    return "a.toml"


def refused(capsys: Capture, *args: object) -> str:
    """The sentence with which a command line is refused; nothing may have been made."""
    before = sorted(Path().iterdir())
    assert train(*args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("thinwire: ") and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert sorted(Path().iterdir()) == before
    return captured.err


# What is refused


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[model]\nwidht = 3\n",
            "unknown setting in [model] of a.toml: widht; did you mean width?",
        ),
        ("[optim]\nlearning_rate = 3\n", "unknown setting in [optim] of a.toml: learning_rate"),
        ("[modle]\nwidth = 3\n", "unknown section in a.toml: modle; did you mean model?"),
        ('out = "elsewhere"\n', "unknown section in a.toml: out; known are run, model,"),
        ("model = 3\n", "model in a.toml must be a section, [model]"),
        ('[model]\nwidth = "wide"\n', "[model] width in a.toml is 'wide', and must be a whole num"),
        ("[model]\nwidth = 16.5\n", "[model] width in a.toml is 16.5, and must be a whole number"),
        (
            "[model]\nwidth = 999999999999999999999\n",
            "a.toml is 999999999999999999999, and must be 9,223,372,036,854,775,807 at most",
        ),
        ('[model]\ntied = "yes"\n', "[model] tied in a.toml is 'yes', and must be true or false"),
        (
            '[model]\nkind = "gru"\n',
            "model.kind is gru, which is none of lstm, transformer, causal_conv",
        ),
        ("[run]\ntokens = -5\n", "--tokens is -5, but a budget must be above 0"),
        ("[model\n", "a.toml is not valid TOML"),
        ("[model]\ndropout = 2.0\n", "model.dropout is 2.0, but it must lie in [0, 1)"),
    ],
)
def test_a_file_of_settings(text: str, sentence: str, toy_data: Path, capsys: Capture) -> None:
    file = toml(text)
    assert sentence in refused(capsys, toy_data, "--out", "run", "--config", file)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("--model.widht 3", "unknown flag: --model.widht; did you mean --model.width?"),
        (
            "--model.width wide",
            "--model.width is 'wide', and must be a whole number",
        ),
        ("--model.width", "--model.width"),
        (
            "--model.width 999999999999999999999",
            "--model.width is 999999999999999999999, and must be 9,223,372,036,854,775,807 at most",
        ),
        (
            "--model.width 9223372036854775808",
            "--model.width is 9223372036854775808, and must be 9,223,372,036,854,775,807 at most",
        ),
        ("--tokens -5", "--tokens is -5, but a budget must be above 0"),
        ("--seconds 0", "--seconds is 0.0, but a budget must be above 0"),
        ("--epochs nan", "--epochs is nan, but a budget must be above 0"),
        ("--tokens many", "--tokens is 'many', and must be a whole number"),
        ("--threads -1", "--threads is -1"),
        ("--device tpu", "--device is 'tpu', and must be one of auto, cpu, cuda"),
        ("--loss.kind hinge", "--loss.kind is 'hinge', and must be one of sampled"),
        ("--loss.samples 0", "loss.samples is 0, but at least 1 word must be drawn"),
        ("--optim.lr 0", "optim.lr must be above 0, and it is 0"),
        ("--eval.tokens -1", "eval.tokens is -1, and must be 0 or more"),
        ("--loss.kind adaptive --model.tied", "model.tied cannot be"),
        ("--model.tied --model.embedding_width 8", "embedding_width is 8 and model.width 256"),
        ("--model.kind transformer --model.width 30", "model.width is 30, but a transformer's"),
        ("--config nowhere.toml", "there is no settings file nowhere.toml"),
        ("--config .", ".: Is a directory"),
        ("--data.batch 5000", "15,635 tokens, too few for one step of 5000 sequences"),
        ("--data.context line --data.batch 5000", "1,880 lines, too few for one step of 5000"),
        ("--resume", "run is not a run folder: it has no config.toml"),
        ("more", "more"),
    ],
)
def test_flags(args: str, sentence: str, toy_data: Path, capsys: Capture) -> None:
    assert sentence in refused(capsys, toy_data, "--out", "run", *args.split())


def test_out_is_needed(toy_data: Path, capsys: Capture) -> None:
    assert "--out" in refused(capsys, toy_data)


def test_data_is_needed(capsys: Capture) -> None:
    assert "data" in refused(capsys, "--out", "run").lower()


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder", "a run"])
def test_what_is_no_data_folder(what: str, toy_data: Path, capsys: Capture) -> None:
    data = Path("some")
    if what == "a file":
        data.write_text("text")
    elif what == "an empty folder":
        data.mkdir()
    elif what == "a run":
        assert train(toy_data, "--out", data, *SMALL, "--tokens", 1) == 0
        capsys.readouterr()
    sentence = refused(capsys, data, "--out", "run")
    assert "some is no data folder" in sentence and "`thinwire prepare`" in sentence


def test_out_is_a_file(toy_data: Path, capsys: Capture) -> None:
    Path("run").write_text("")
    assert "run is a file, and a run needs a folder" in refused(capsys, toy_data, "--out", "run")


def test_out_cannot_be_written(toy_data: Path, capsys: Capture) -> None:
    Path("file").write_text("")
    assert "Not a directory" in refused(capsys, toy_data, "--out", "file/run", *SMALL)
    if os.getuid():  # root may write everywhere
        Path("locked").mkdir(mode=0o500)
        assert "Permission denied" in refused(capsys, toy_data, "--out", "locked/run", *SMALL)


def test_an_existing_run(toy_data: Path, capsys: Capture) -> None:
    assert train(toy_data, "--out", "run", *SMALL, "--tokens", 1) == 0
    capsys.readouterr()
    sentence = refused(capsys, toy_data, "--out", "run", *SMALL)
    assert "run already holds a run: go on with --resume, or name another --out" in sentence


def test_a_loss_that_explodes(toy_data: Path, capsys: Capture) -> None:
    rates = ["--optim.rows", "sgd", "--optim.row_lr", "1e6", "--optim.clip", "0"]
    assert train(toy_data, "--out", "run", *SMALL, *rates) == 2
    said = capsys.readouterr().err
    assert "thinwire: the loss has risen from" in said and "--optim.row_lr (now 1e+06)" in said
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "end"


# What is understood


def test_flags_go_before_the_file_and_the_file_before_the_defaults(toy_data: Path) -> None:
    file = toml("[model]\nwidth = 8\nlayers = 2\n[run]\ntokens = 99\nseed = 5\nthreads = 1\n")
    assert train(toy_data, "--out", "deep/run", "--config", file, "--model.width", 12) == 0
    run = RunFolder.open(Path("deep/run"))
    config, default = run.config, RunConfig()
    assert (config.model.width, config.model.layers, config.run.seed) == (12, 2, 5)
    assert (config.run.tokens, config.run.seconds) == (99, None)
    assert (config.loss, config.optim) == (default.loss, default.optim)
    assert run.data == toy_data.resolve()


def test_a_runs_settings_are_a_file_of_settings(toy_data: Path) -> None:
    assert train(toy_data, "--out", "one", *SMALL, "--tokens", 30, "--model.tied") == 0
    assert train(toy_data, "--out", "two", "--config", f"one/{CONFIG_FILE}") == 0
    assert Path("one", CONFIG_FILE).read_bytes() == Path("two", CONFIG_FILE).read_bytes()


def test_resume_takes_the_runs_own_settings(toy_data: Path, capsys: Capture) -> None:
    assert train(toy_data, "--out", "run", *SMALL, "--tokens", 30) == 0
    assert train(toy_data, "--out", "run", "--resume", "--tokens", 60) == 0
    said = capsys.readouterr().err
    assert "Going on from step 2, in run" in said
    assert "Its budget is spent" not in said
    assert train(toy_data, "--out", "run", "--resume") == 0
    assert "Its budget is spent: a larger --seconds" in capsys.readouterr().err
    config = RunFolder.open(Path("run")).config
    assert (config.model.width, config.loss.samples, config.run.tokens) == (16, 20, 60)
    sentence = refused(capsys, toy_data, "--out", "run", "--resume", "--model.width", 32)
    assert "model.width was 16 in run and is now 32" in sentence


def test_settings_of_another_exchange(toy_data: Path, capsys: Capture) -> None:
    late = ("--exchange.delay", 1, "--workers", 2)
    sentence = refused(capsys, toy_data, "--out", "run", "--exchange", "periodic", *late)
    assert "exchange.delay is 1, and a run with the exchange periodic has no such" in sentence
    # A run of two workers goes on with another exchange, without what only the first one had.
    settings = ("--exchange", "periodic", "--exchange.local_steps", 8)
    assert train(toy_data, "--out", "run", *SMALL, *settings, "--tokens", 30) == 0
    assert train(toy_data, "--out", "run", "--resume", "--exchange", "sync", "--tokens", 60) == 0
    exchange = RunFolder.open(Path("run")).config.exchange
    assert (exchange.kind, exchange.local_steps) == ("sync", ExchangeConfig().local_steps)
    more = ("--exchange.local_steps", 8, "--tokens", 90)
    capsys.readouterr()
    sentence = refused(capsys, toy_data, "--out", "run", "--resume", *more)
    assert "exchange.local_steps is 8" in sentence and "periodic has it" in sentence


@pytest.mark.parametrize("flag", ["--tokens", "--run.tokens"])
def test_both_names_of_a_budget(flag: str, toy_data: Path) -> None:
    assert train(toy_data, "--out", "run", *SMALL, flag, 29) == 0
    assert RunFolder.open(Path("run")).config.run.tokens == 29


def test_help_names_every_section(capsys: Capture) -> None:
    assert train("--help") == 0
    shown = capsys.readouterr().out
    assert "--data " not in shown  # it stands without a name
    for name in ("--seconds", "--model.kind", "--loss.samples", "--data.batch", "--optim.row_lr"):
        assert name in shown
