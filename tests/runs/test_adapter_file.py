from __future__ import annotations

from pathlib import Path

import pytest
import torch

from thinwire.runs.adapter_file import AdapterFile

LAYERS = AdapterFile({"output_adapter.down": torch.ones(2, 3)}, "output", 7, "abc")


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = AdapterFile.path(tmp_path, "new")
    (path.parent / "new.tmp").mkdir(parents=True)  # where it is written before it has its name
    with pytest.raises(OSError, match="Is a directory"):
        LAYERS.save(tmp_path, "new")
    assert not path.exists()


def test_the_umask_says_who_may_read(tmp_path: Path) -> None:
    path = LAYERS.save(tmp_path, "new")
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert [file.name for file in path.parent.iterdir()] == [path.name]
