"""The settings of a run: each component's own config, composed; read and written as strict TOML.

What is not understood is refused. The command line, a TOML file and Python fill the same frozen
dataclasses.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from thinwire.data.config import DataConfig
from thinwire.errors import UserError
from thinwire.exchange.config import ExchangeConfig
from thinwire.loss.config import LossConfig
from thinwire.models.config import ModelConfig
from thinwire.optim.config import OptimConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_SECONDS = 600.0
LARGEST_WHOLE = 2**63 - 1
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Budget, randomness and machine."""

    seconds: Annotated[float | None, Parameter(name=("--seconds", "--run.seconds"))] = None
    """Training budget in seconds, without evaluation and saving. [default: 600 if no other budget
    is given]"""
    tokens: Annotated[int | None, Parameter(name=("--tokens", "--run.tokens"))] = None
    """Training budget in tokens, over all workers."""
    epochs: Annotated[float | None, Parameter(name=("--epochs", "--run.epochs"))] = None
    """Training budget in passes over the training split."""
    seed: Annotated[int, Parameter(name=("--seed", "--run.seed"))] = 1
    """Seed of everything random in the run."""
    threads: Annotated[int, Parameter(name=("--threads", "--run.threads"))] = 0
    """Compute threads of each worker. 0: the cores are divided evenly among the workers."""
    workers: Annotated[int, Parameter(name=("--workers", "--run.workers"))] = 1
    """Number of workers on this machine. Under torchrun, torchrun sets it."""
    device: Annotated[Device, Parameter(name=("--device", "--run.device"))] = "auto"
    """Where to compute. auto: CUDA if there is a GPU, else the CPU."""
    precision: Precision = "fp32"
    """Type of the factors in the matrix products of training; everything else is fp32. auto: bf16
    if the first worker's device has hardware for it and is clearly faster with it, else fp32."""

    def __post_init__(self) -> None:
        for name in ("seconds", "tokens", "epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} is {value}, but a budget must be above 0")
        if self.threads < 0:
            raise UserError(f"--threads is {self.threads}, but it must be 0 (all cores) or more")
        if self.workers < 1:
            raise UserError(f"--workers is {self.workers}, but it must be 1 or more")
        if self.device not in get_args(Device):
            raise UserError(
                f"--device is {self.device}, which is none of {', '.join(get_args(Device))}"
            )
        if self.precision not in get_args(Precision):
            raise UserError(
                f"run.precision is {self.precision}, which is none of "
                f"{', '.join(get_args(Precision))}"
            )


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Evaluation while training."""

    every_seconds: float = 60.0
    """Seconds of training between evaluations. With a budget in tokens or epochs, a run whose
    evaluations affect the results (plateau schedule, `eval.patience`, periodic exchange,
    `exchange.delay`, or rows that decay by `adamw`) instead evaluates 20 times, at equal distances
    in tokens."""
    every_tokens: int = 0
    """Training tokens between evaluations. 0: every_seconds applies."""
    tokens: int = 50_000
    """Validation tokens scored in each evaluation, spread evenly over the split. 0: all."""
    patience: int = 0
    """Number of evaluations in a row without a new best perplexity after which training stops. 0:
    training never stops early."""

    def __post_init__(self) -> None:
        _require_not_negative("eval", self, "every_seconds", "every_tokens", "tokens", "patience")


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Saving."""

    every_seconds: float = 300.0
    """Seconds of training between checkpoints. The final state is always saved. With a budget in
    tokens or epochs, a run whose saves affect the results (periodic exchange, `exchange.delay`, or
    rows that decay by `adamw`) instead saves 20 times, at equal distances in tokens."""
    every_tokens: int = 0
    """Training tokens between checkpoints. 0: every_seconds applies."""
    keep: int = 2
    """Number of newest checkpoints to keep. The best one is always kept too."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UserError(f"checkpoint.keep is {self.keep}, but at least 1 step must stay")
        _require_not_negative("checkpoint", self, "every_seconds", "every_tokens")


@dataclass(frozen=True, kw_only=True)
class MetricsSettings:
    """What is recorded."""

    every_seconds: float = 5.0
    """Seconds of training between `train` lines of metrics.jsonl."""
    every_steps: int = 0
    """Steps between `train` lines. 0: every_seconds applies."""
    tensorboard: bool = False
    """Also write TensorBoard files to RUN/tensorboard. This needs the package tensorboard."""

    def __post_init__(self) -> None:
        _require_not_negative("metrics", self, "every_seconds", "every_steps")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a training run. Every one has a default that works."""

    run: RunSettings = field(default_factory=RunSettings)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    eval: EvalSettings = field(default_factory=EvalSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    def __post_init__(self) -> None:
        if self.model.tied and self.loss.kind == "adaptive":
            raise UserError("the adaptive loss has no output row a word, so model.tied cannot be")
        object.__setattr__(self, "optim", self.optim.for_model(self.model.kind))

    def to_toml(self) -> str:
        """The complete settings as TOML; a setting that is None is left out."""
        return "\n".join(toml_section(name, values) for name, values in asdict(self).items())

    def fingerprint(self) -> str:
        """A short digest of all settings."""
        return blake2b(self.to_toml().encode(), digest_size=8).hexdigest()

    @classmethod
    def from_dict(cls, sections: dict[str, Any], source: str = "the settings") -> RunConfig:
        """Settings from nested dicts.

        Raises:
            UserError: a section or key that does not exist, naming the nearest one, or a value of
                another type.
        """
        typed = typed_sections(sections, source)
        makers: dict[str, Any] = get_type_hints(cls)
        return cls(**{section: makers[section](**values) for section, values in typed.items()})

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Settings from a TOML file; what it does not name keeps its default."""
        return cls.from_dict(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested dicts, or one sentence about why it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no settings file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid TOML: it is nested too deep") from None


def typed_sections(sections: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """Settings from nested dicts, each of a section and key that exist, and of its type.

    A whole number is accepted where a number with a fraction may stand, and nothing else.
    """
    known = get_type_hints(RunConfig)
    checked: dict[str, dict[str, Any]] = {}
    for section, values in sections.items():
        _require_known(section, list(known), f"section in {source}")
        if not isinstance(values, dict):
            raise UserError(f"{section} in {source} must be a section, [{section}]")
        hints = get_type_hints(known[section])
        for key in values:
            _require_known(key, list(hints), f"setting in [{section}] of {source}")
        checked[section] = {
            key: _typed(value, hints[key], f"[{section}] {key} in {source}")
            for key, value in values.items()
        }
    return checked


def toml_section(name: str, values: Mapping[str, Any]) -> str:
    """A section of a TOML file; what is None is left out."""
    lines = (f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None)
    return f"[{name}]\n" + "".join(lines)


def _require_known(name: str, known: list[str], what: str) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise UserError(f"unknown {what}: {name}; {hint}")


def _require_not_negative(section: str, settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not value >= 0:
            raise UserError(f"{section}.{name} is {value}, and must be 0 or more")


def _typed(value: Any, hint: Any, where: str) -> Any:
    if type(value) is int and abs(value) > LARGEST_WHOLE and int in _kinds(hint):
        raise UserError(f"{where} is {value}, and must be {LARGEST_WHOLE:,} at most")
    for kind in _kinds(hint):
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
        elif type(value) is kind:
            return value
        elif kind is float and type(value) is int:
            return float(value)
    raise UserError(f"{where} is {value!r}, and must be {in_words(hint)}")


def in_words(hint: Any) -> str:
    """What a value of this type is: "a whole number", "one of text, line"."""
    kinds = _kinds(hint)
    choices = [c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
    return f"one of {', '.join(choices)}" if choices else _TYPES.get(kinds[0], "a value")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a union is of, or the one type; `Literal[...] | None` is a `Union`."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON strings are TOML basic strings, but for one character that JSON does not escape.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
