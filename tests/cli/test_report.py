from __future__ import annotations

import shutil
from pathlib import Path


def test_the_path_of_the_page_is_the_output(thinwire, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("[run]\nseed = 1\n")
    done = thinwire("report", "run")
    assert (done.returncode, done.stdout) == (0, "run/report.html\n")
    assert (run / "report.html").exists()

    shutil.copytree(run, tmp_path / "other")
    done = thinwire("report", "run", "other", "--out", "both.html")
    assert (done.returncode, done.stdout) == (0, "both.html\n")
    assert "2 runs compared" in (tmp_path / "both.html").read_text()


def test_a_folder_that_is_no_run(thinwire) -> None:
    done = thinwire("report", ".")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "thinwire: . is not a run folder: it has no config.toml\n"


def test_a_folder_in_brackets_is_a_name(thinwire, tmp_path: Path) -> None:
    run = tmp_path / "[1]"
    run.mkdir()
    (run / "config.toml").write_text("[run]\nseed = 1\n")
    done = thinwire("report", "[1]")
    assert (done.returncode, done.stdout) == (0, "[1]/report.html\n")
