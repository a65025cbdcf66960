from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from thinwire import tensors
from thinwire.tensors import read_tensors


def test_an_interrupt_comes_after_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"ids": torch.arange(3)}, file)
    assert read_tensors(file)["ids"].tolist() == [0, 1, 2]
    read, load = [], tensors.load_file

    def interrupted(*given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        read.append(load(*given))
        return read[0]

    monkeypatch.setattr(tensors, "load_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_tensors(file)
    assert len(read) == 1
