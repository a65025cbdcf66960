"""Settings survive a file, and what is not understood is refused."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.config import (
    LARGEST_WHOLE,
    CheckpointSettings,
    EvalSettings,
    MetricsSettings,
    RunConfig,
    RunSettings,
    in_words,
    toml_section,
    tomllib,
)
from thinwire.errors import UserError
from thinwire.exchange.config import KINDS_OF, ExchangeConfig

# What the settings demand of their values, where that is more than their type.
FRACTION = st.floats(0, 1, exclude_max=True)
NAN = float("nan")
POSITIVE = st.floats(min_value=0, exclude_min=True)
NOT_NEGATIVE = st.floats(min_value=0, allow_nan=False)
DEMANDS: dict[str, st.SearchStrategy[Any]] = {
    "model.kind": st.sampled_from(["lstm", "transformer", "causal_conv", "package.module:Class"]),
    "run.seed": st.integers(-LARGEST_WHOLE, LARGEST_WHOLE),
    "run.threads": st.integers(0, 99),
    "model.width": st.integers(1, 9).map(lambda n: 16 * n),
    "model.heads": st.sampled_from([1, 2, 4, 8]),
    "model.layers": st.integers(1, 5),
    "model.kernel": st.integers(2, 4),
    "model.dilation": st.integers(1, 4),
    "model.window": st.integers(2, 99),
    "model.ngrams": st.integers(0, 16),
    "model.ngram_rows": st.integers(1, 1 << 40),
    "model.embedding_width": st.just(0),
    "model.dropout": FRACTION,
    "model.adapters": st.sampled_from(["output", "both"]),  # without them nothing is frozen
    "model.frozen": st.sampled_from(["", "base.safetensors", "/a folder/\u00e4.safetensors"]),
    "loss.kind": st.sampled_from(["sampled", "full", "nce"]),  # adaptive goes with no tied output
    "loss.power": st.floats(0, 1),
    "optim.weight_decay": st.just(0.0),
    "optim.initial_accumulator": NOT_NEGATIVE.filter(lambda x: x < 1e300),
    "optim.clip": NOT_NEGATIVE.filter(lambda x: x < 1e300),
    "optim.final_lr_fraction": st.floats(0, 1),
    "optim.plateau_factor": st.floats(0.01, 0.99),
    "exchange.hidden_fraction": st.floats(0, 1, exclude_min=True),
    "exchange.local_steps": st.integers(8, 99),
    "exchange.fragments": st.integers(1, 8),  # no more than there are local steps
    "exchange.outer_momentum": FRACTION,
    "exchange.timeout_seconds": st.floats(0, 1e6, exclude_min=True),
    **{f"optim.{name}": FRACTION for name in ("beta1", "beta2", "momentum", "rho")},
    **{f"optim.{name}": st.floats(1e-30, 1e30) for name in ("lr", "row_lr")},
}


def values(name: str, hint: Any) -> st.SearchStrategy[Any]:
    if name in DEMANDS:
        return DEMANDS[name]
    if isinstance(hint, UnionType):
        return st.one_of(
            st.none() if kind is type(None) else values(name, kind) for kind in get_args(hint)
        )
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    return {bool: st.booleans(), int: st.integers(1, 10**18), float: POSITIVE}[hint]


def sections() -> dict[str, st.SearchStrategy[Any]]:
    return {
        section: st.fixed_dictionaries(
            {key: values(f"{section}.{key}", hint) for key, hint in get_type_hints(made).items()}
        ).map(partial(build, made))
        for section, made in get_type_hints(RunConfig).items()
    }


def build(made: Any, settings: dict[str, Any]) -> Any:
    """A section; where settings demand something of one another, they get it."""
    if made is ExchangeConfig and (
        settings["kind"] == "periodic" or settings["select"] == "everything"
    ):
        settings = settings | {"hidden_fraction": 1.0}  # all hidden blocks travel
    if made is ExchangeConfig:
        whole = settings["row_steps"] // settings["local_steps"] * settings["local_steps"]
        settings = settings | {"row_steps": whole}
    return made(**settings)


@given(st.builds(RunConfig, **sections()))
def test_a_file_holds_all_of_it(config: RunConfig) -> None:
    text = config.to_toml()
    assert RunConfig.from_dict(tomllib.loads(text)) == config
    assert RunConfig.from_dict(tomllib.loads(text)).fingerprint() == config.fingerprint()


def test_reads_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[model]\nkind = "transformer"\nwidth = 64\n[optim]\nlr = 1\n')
    config = RunConfig.read(file)
    assert (config.model.kind, config.model.width) == ("transformer", 64)
    assert (config.optim.lr, type(config.optim.lr)) == (1.0, float)
    assert config.loss == RunConfig().loss


def test_every_setting_has_a_default_and_a_sentence() -> None:
    """RunConfig() works, and each field is followed by its docstring."""
    for made in get_type_hints(RunConfig).values():
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(made))).body
        assert isinstance(tree, ast.ClassDef)
        body = tree.body
        documented = {
            before.target.id
            for before, after in itertools.pairwise(body)
            if isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        }
        assert documented == {f.name for f in fields(made)}


@given(st.dictionaries(st.just("key"), st.text() | st.integers() | st.booleans()))
def test_odd_strings_survive_a_file(content: dict[str, Any]) -> None:
    assert tomllib.loads(toml_section("some", content)) == {"some": content}


@pytest.mark.parametrize("text", ['"', "\\", "a\nb\tc\r\0\x7f", "[x]", "\u2028 ü 中 🦜", "'''"])
def test_strings_that_need_escapes(text: str) -> None:
    assert tomllib.loads(toml_section("some", {"key": text})) == {"some": {"key": text}}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sync", {"local_steps": 8}),
        ("sync", {"servers": 2}),
        ("async", {"delay": 1}),
        ("async", {"outer_momentum": 0.9}),
        ("async", {"check_replicas": True}),
        ("periodic", {"accumulate": 2}),
        ("periodic", {"hidden_kind": "largest"}),
    ],
)
def test_an_exchange_refuses_what_another_has(kind: Any, settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(UserError, match=rf"exchange\.{name} is .* the exchange {kind} has no such"):
        ExchangeConfig(kind=kind, **settings).require_applicable()
    for other in (*KINDS_OF[name], "auto"):
        ExchangeConfig(kind=other, **settings).require_applicable()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"modle": {}}, "unknown section in f.toml: modle; did you mean model?"),
        ({"zzz": {}}, "unknown section in f.toml: zzz; known are run, model, loss"),
        ({"model": {"widht": 3}}, r"setting in \[model\] of f.toml: widht; did you mean width?"),
        ({"run": {"qqq": 3}}, r"setting in \[run\] of f.toml: qqq; known are seconds, tokens"),
        ({"model": 3}, r"model in f.toml must be a section, \[model\]"),
        ({"model": {"width": "3"}}, r"\[model\] width in f.toml is '3', .* be a whole number"),
        ({"model": {"width": 3.5}}, r"\[model\] width in f.toml is 3.5, .* be a whole number"),
        ({"model": {"width": True}}, r"\[model\] width in f.toml is True, .* be a whole number"),
        ({"model": {"tied": 1}}, r"\[model\] tied in f.toml is 1, and must be true or false"),
        ({"model": {"dropout": "x"}}, r"\[model\] dropout in f.toml is 'x', .* be a number"),
        ({"run": {"seconds": "x"}}, r"\[run\] seconds in f.toml is 'x', and must be a number"),
        ({"model": {"kind": "gru"}}, "kind is gru, which is none of lstm, transformer, causal"),
        ({"model": {"kind": 3}}, "is 3, and must be one of lstm, transformer, causal_conv"),
        ({"loss": {"kind": ["full"]}}, r"is \['full'\], and must be one of sampled"),
        ({"loss": {"samples": 0}}, "loss.samples is 0"),
        ({"model": {"tied": True}, "loss": {"kind": "adaptive"}}, "model.tied cannot be"),
    ],
)
def test_refused(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        RunConfig.from_dict(content, "f.toml")


@pytest.mark.parametrize(
    ("make", "settings", "sentence"),
    [
        (RunSettings, {"seconds": 0.0}, "--seconds is 0.0, but a budget must be above 0"),
        (RunSettings, {"tokens": -5}, "--tokens is -5, but a budget must be above 0"),
        (RunSettings, {"epochs": float("nan")}, "--epochs is nan, but a budget"),
        (RunSettings, {"threads": -1}, "--threads is -1"),
        (RunSettings, {"workers": 0}, "--workers is 0, but it must be 1 or more"),
        (
            RunSettings,
            {"precision": "fp16"},
            "run.precision is fp16, which is none of auto, fp32, bf16",
        ),
        (RunSettings, {"device": "tpu"}, "--device is tpu, which is none of auto, cpu, cuda, mps"),
        (EvalSettings, {"tokens": -1}, "eval.tokens is -1, and must be 0 or more"),
        (EvalSettings, {"every_seconds": float("nan")}, "eval.every_seconds is nan"),
        (EvalSettings, {"every_tokens": -1}, "eval.every_tokens is -1"),
        (CheckpointSettings, {"keep": 0}, "checkpoint.keep is 0, but at least 1"),
        (CheckpointSettings, {"every_seconds": -1.0}, "checkpoint.every_seconds is -1.0"),
        (MetricsSettings, {"every_steps": -1}, "metrics.every_steps is -1"),
        (MetricsSettings, {"every_seconds": -1.0}, "metrics.every_seconds is -1.0"),
        (
            ExchangeConfig,
            {"kind": "gossip"},
            "exchange.kind is gossip, which is none of sync, async",
        ),
        (
            ExchangeConfig,
            {"select": "some"},
            "exchange.select is some, which is none of rows, every",
        ),
        (
            ExchangeConfig,
            {"codec": "fp8"},
            "exchange.codec is fp8, which is none of fp32, bf16, int8, int4",
        ),
        (
            ExchangeConfig,
            {"hidden_kind": "no"},
            "exchange.hidden_kind is no, which is none of feedback",
        ),
        (ExchangeConfig, {"hidden_fraction": 0.0}, r"hidden_fraction is 0.0, but .* in \(0, 1\]"),
        (ExchangeConfig, {"hidden_fraction": 1.5}, r"hidden_fraction is 1.5, but .* in \(0, 1\]"),
        (ExchangeConfig, {"hidden_fraction": NAN}, "hidden_fraction is nan"),
        (
            ExchangeConfig,
            {"hidden_fraction": 0.5, "select": "everything"},
            "--select everything sends all hidden blocks, so .* must be 1, and is 0.5",
        ),
        (
            ExchangeConfig,
            {"hidden_fraction": 0.5, "kind": "periodic"},
            "a periodic exchange sends all hidden blocks, so .* must be 1, and is 0.5",
        ),
        (ExchangeConfig, {"local_steps": 0}, "exchange.local_steps is 0, and must be 1 or more"),
        (ExchangeConfig, {"fragments": 0}, "exchange.fragments is 0, and must be 1 or more"),
        (
            ExchangeConfig,
            {"fragments": 5, "local_steps": 4},
            r"exchange.fragments is 5, but no more than exchange.local_steps \(4\)",
        ),
        (ExchangeConfig, {"outer_lr": 0.0}, "exchange.outer_lr is 0.0, and must be above 0"),
        (ExchangeConfig, {"outer_momentum": 1.0}, r"outer_momentum is 1.0, but .* in \[0, 1\)"),
        (ExchangeConfig, {"outer_momentum": -0.1}, "outer_momentum is -0.1"),
        (
            ExchangeConfig,
            {"timeout_seconds": 0.0},
            "timeout_seconds is 0.0, and must lie between 0",
        ),
        (ExchangeConfig, {"timeout_seconds": 1e7}, "timeout_seconds is 10000000.0, .* 1,000,000"),
        (ExchangeConfig, {"timeout_seconds": NAN}, "timeout_seconds is nan"),
    ],
)
def test_values_that_make_no_sense(make: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(**settings)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[model\n", "a.toml is not valid TOML"),
        (b"[model]\nwidth = 1\nwidth = 2\n", "a.toml is not valid TOML"),
        (b"\xff\xfe", "a.toml is not valid TOML"),
    ],
)
def test_files_that_are_no_toml(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        RunConfig.read(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no settings file .*a\.toml"):
        RunConfig.read(tmp_path / "a.toml")


def test_rates_are_resolved_into_the_file() -> None:
    config = RunConfig.from_dict({"model": {"kind": "transformer"}, "optim": {"row_lr": 0.3}})
    optim = tomllib.loads(config.to_toml())["optim"]
    assert (optim["lr"], optim["row_lr"]) == (0.002, 0.3)
    assert tomllib.loads(RunConfig().to_toml())["optim"]["lr"] == 0.005


def test_settings_nested_too_deep_are_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "deep.toml"
    file.write_text("a = " + "[" * 100_000, encoding="utf-8")
    with pytest.raises(UserError, match="it is nested too deep"):
        RunConfig.read(file)


def test_types_in_words() -> None:
    assert in_words(Literal["a", "b"] | None) == "one of a, b"
    assert in_words(list[Path]) == "a value"
