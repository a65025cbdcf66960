"""The classes of other packages that adapters inherit from, restated for where they are missing."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest


class BatchScorerInterface:
    """ESPnet's has only defaults that the adapter replaces."""


class LM:
    """lm-eval's, without the parts that a harness of several processes needs."""

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1


class CTCDecoderLMState:
    """Flashlight's: one object for each path of words."""

    def __init__(self) -> None:
        self.children: dict[int, CTCDecoderLMState] = {}

    def child(self, index: int) -> CTCDecoderLMState:
        return self.children.setdefault(index, CTCDecoderLMState())


class CTCDecoderLM:
    """torchaudio's is abstract."""


def adapter(monkeypatch: pytest.MonkeyPatch, name: str, their_module: str, **classes: Any) -> Any:
    """The module `thinwire.integrations.<name>`, over the real package where it is installed."""
    try:
        import_module(their_module)
    except (ImportError, OSError):
        parts = their_module.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, path, ModuleType(path))
        vars(sys.modules[their_module]).update(classes)
        monkeypatch.delitem(sys.modules, f"thinwire.integrations.{name}", raising=False)
    return import_module(f"thinwire.integrations.{name}")
