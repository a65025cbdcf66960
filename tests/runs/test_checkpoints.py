"""Nothing that was saved is lost, and nothing that is loaded is damaged, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from thinwire.errors import UserError
from thinwire.runs import checkpoints as module
from thinwire.runs import step_folder, tensor_file
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.step_folder import Checkpoint


def groups(value: float, num_rows: int = 300) -> dict[str, dict[str, torch.Tensor]]:
    weight = torch.full((num_rows, 16), value)
    return {"model": {"weight": weight}, "optimizer": {"sum": weight[:, 0].clone()}}


def save(run: Path, *steps: int, best: int | None = None, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(run, keep)
    for step in steps:
        checkpoints.save(step, groups(step), {"step": step}, best=step == best)
    checkpoints.wait()
    return checkpoints


def is_whole(checkpoint: Checkpoint) -> bool:
    step = checkpoint.step
    return checkpoint.state == {"step": step} and bool(
        (checkpoint.open("model")["weight"] == step).all()
        and (checkpoint.open("optimizer")["sum"] == step).all()
    )


@pytest.fixture(params=["background", "foreground"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "foreground":
        monkeypatch.setattr(module, "BACKGROUND_MAX_bytes", -1)
    return str(request.param)


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path, way: str) -> None:
    tensors = {
        "bfloat16": torch.randn(7, 3).to(torch.bfloat16),
        "float32": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "float64": torch.tensor([0.1], dtype=torch.float64),
        "float16": torch.randn(5).half(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "int32": torch.tensor([[-1], [2]], dtype=torch.int32),
        "uint8": torch.arange(256).to(torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 8),
        "empty too": torch.empty(0, 8),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    tensors["same memory"] = tensors["int64"]
    tensors["part of it"] = tensors["uint8"][10:20]
    Checkpoints(tmp_path).save(1, {"model": tensors, "nothing": {}}, {"loss": 0.1, "names": ["é"]})
    loaded = _wait_and_load(tmp_path)
    assert loaded.state == {"loss": 0.1, "names": ["é"]}
    assert loaded.open("nothing") == {}
    found = loaded.open("model")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert _bits(found[name]) == _bits(tensor), name


def _wait_and_load(run: Path) -> Checkpoint:
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    return Checkpoints(run).load()


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_what_is_stored_is_the_moment_of_the_call(tmp_path: Path, way: str) -> None:
    tensors, state = groups(1, num_rows=200_000), {"step": 1, "nested": [1]}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tensors, state)
    for group in tensors.values():
        for tensor in group.values():
            tensor.fill_(9)
    state["nested"].append(2)  # type: ignore[attr-defined]
    checkpoints.wait()
    loaded = checkpoints.load()
    assert loaded.state == {"step": 1, "nested": [1]}
    assert (loaded.open("model")["weight"] == 1).all()


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 10, 20, 30, 40, 50, best=20)
    assert checkpoints.steps == [20, 40, 50]
    assert (checkpoints.newest, checkpoints.best) == (50, 20)
    assert is_whole(checkpoints.load("best")) and checkpoints.load("best").step == 20
    checkpoints.save(60, groups(60), {"step": 60}, best=True)
    checkpoints.wait()
    assert checkpoints.steps == [50, 60]
    assert Checkpoints(tmp_path).best == 60


def test_without_a_best_step_the_newest_serves(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2)
    assert checkpoints.best is None
    assert checkpoints.load("best").step == 2


def test_a_step_may_be_saved_again(tmp_path: Path, way: str) -> None:
    checkpoints = save(tmp_path, 1, 2)
    checkpoints.save(2, groups(7), {"again": True}, best=True)
    checkpoints.wait()
    assert checkpoints.load().state == {"again": True} and checkpoints.best == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]


def test_a_step_that_is_saved_again_stays_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, groups(5), {"step": 5}, best=True)
    checkpoints.save(5, groups(5), {"step": 5})
    assert checkpoints.best == 5  # without wait(): whoever asks sees what was saved


def test_what_is_being_written_counts_as_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, groups(1, num_rows=100_000), {"step": 1})
    assert checkpoints.steps == [1] and checkpoints.newest == 1
    checkpoints.save(2, groups(2, num_rows=100_000), {"step": 2})
    assert is_whole(checkpoints.load(2))


def test_killed_between_two_renames(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step-2").rename(tmp_path / "step-2.old")
    assert is_whole(Checkpoints(tmp_path).load(2))
    assert save(tmp_path, 3).steps == [2, 3]
    assert is_whole(Checkpoints(tmp_path).load(2))


def test_leftovers_are_ignored_then_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-2.tmp").mkdir()
    (tmp_path / "step-2.tmp" / "model.safetensors").write_bytes(b"half")
    assert Checkpoints(tmp_path).load().step == 1
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return damage


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def leave_out(checksums: Path, name: str) -> None:
    manifest = json.loads(checksums.read_text())
    del manifest["files"][name]
    checksums.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip("model.safetensors"),
        flip("optimizer.safetensors"),
        flip("state.json"),
        remove("optimizer.safetensors"),
        remove("state.json"),
        remove("checksums.json"),
        lambda folder: (folder / "checksums.json").write_text("[]"),
        lambda folder: leave_out(folder / "checksums.json", "model.safetensors"),
        lambda folder: (folder / "checksums.json").write_bytes(b"\xff\0"),
    ],
)
def test_damage_is_named_and_passed_over(
    damage: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = save(tmp_path, 10, 20)
    damage(tmp_path / "step-20")
    assert is_whole(checkpoints.load()) and checkpoints.load().step == 10
    said = capsys.readouterr()
    assert "step 20 is damaged" in said.err and said.out == ""
    with pytest.raises(UserError, match=r"Step 20 .* is damaged.*other steps there: 10"):
        checkpoints.load(20)
    assert (checkpoints.steps, checkpoints.newest) == ([10], 10)
    # Saving goes on from the older step; the damaged one must not pass for the newest.
    resumed = save(tmp_path, 15)
    assert resumed.steps == [10, 15] and resumed.load().step == 15


def test_a_damaged_step_can_be_reached_again(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 10, 20, best=20)
    truncate(tmp_path / "step-20")
    assert checkpoints.load().step == 10
    assert checkpoints.best is None
    checkpoints.save(20, groups(20), {"step": 20})
    assert checkpoints.steps == [10, 20] and is_whole(checkpoints.load())
    assert checkpoints.best is None  # another run of the step need not be the best


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_no_flipped_bit_in_the_checksums_passes(tmp_path: Path, position: int) -> None:
    checkpoints = save(tmp_path, 10, 20, best=20)
    file = tmp_path / "step-20" / "checksums.json"
    data = bytearray(file.read_bytes())
    data[position % len(data)] ^= 1
    file.write_bytes(data)
    loaded = checkpoints.load()
    assert is_whole(loaded)  # a flipped blank between two values does no harm
    assert loaded.step == 10 or checkpoints.best == 20


def test_a_damaged_best_step_is_passed_over_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = save(tmp_path, 10, 20, 30, best=10)
    truncate(tmp_path / "step-10")
    assert checkpoints.load("best").step == 30
    assert "step 10 is damaged" in capsys.readouterr().err


def test_a_step_that_is_pruned_while_it_is_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    checksum = step_folder.checksum

    def slow(file: Path) -> str:
        monkeypatch.undo()
        save(tmp_path, 2, keep=1)  # the run goes on in another process
        return checksum(file)

    monkeypatch.setattr(step_folder, "checksum", slow)
    assert is_whole(Checkpoints(tmp_path).load()) and Checkpoints(tmp_path).steps == [2]
    assert capsys.readouterr().err == ""


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "absent").load()
    checkpoints = save(tmp_path, 10, 20)
    with pytest.raises(UserError, match="no step 15, only: 10, 20"):
        checkpoints.load(15)
    with pytest.raises(UserError, match="no 'momentum' tensors, only: model, optimizer"):
        checkpoints.load().open("momentum")
    truncate(tmp_path / "step-10")
    truncate(tmp_path / "step-20")
    with pytest.raises(UserError, match="no whole checkpoint: all 2 found are damaged"):
        checkpoints.load()


def test_a_full_disk_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    checkpoints = save(tmp_path, 1)

    def full(tensors: object, file: Path, metadata: object = None) -> None:
        Path(file).write_bytes(b"a part")
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(UserError, match=r"disk is full: step 2 needs 0.0 MB .* \(steps: 1\)"):
        checkpoints.save(2, groups(2), {"step": 2})
        checkpoints.wait()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert is_whole(checkpoints.load())
    checkpoints.save(3, groups(3), {"step": 3})  # there is room again
    checkpoints.wait()
    assert checkpoints.load().step == 3


def test_a_really_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        checkpoints = save(tmp_path, 1)
        checkpoints.save(2, groups(2, num_rows=100_000), {"step": 2})
        with pytest.raises(UserError, match=r"disk is full: step 2 needs 13\.6 MB"):
            checkpoints.wait()
        assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
        assert is_whole(checkpoints.load())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_another_error_of_the_writer_is_raised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)

    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(step_folder, "flush", denied)
    checkpoints.save(1, groups(1), {})
    with pytest.raises(UserError, match=r"Permission denied.*steps: none"):
        checkpoints.wait()
    checkpoints.wait()


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from thinwire.runs.checkpoints import Checkpoints

def groups(step):
    weight = torch.full((20_000, 16), float(step))
    return {"model": {"weight": weight}, "optimizer": {"sum": weight[:, 0].clone()}}

torch.set_num_threads(1)
run, random = Path(sys.argv[1]), random.Random(1)
num_saves = 0
for _ in range(40):
    newest = Checkpoints(run).newest or 0
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        checkpoints, step = Checkpoints(run), newest
        while True:
            step += 1
            checkpoints.save(step, groups(step), {"step": step}, best=step % 5 == 0)
            checkpoints.wait()
            os.write(tell, b".")
            if step % 3 == 0:  # the same step once more, by way of step-N.old
                checkpoints.save(step, groups(step), {"step": step}, best=step % 5 == 0)
    os.read(told, 1)
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(tell)
    promised = newest + 1 + len(os.read(told, 1 << 16))
    os.close(told)
    loaded = Checkpoints(run).load()
    assert loaded.step >= promised, (loaded.step, promised)
    assert loaded.state == {"step": loaded.step}
    assert (loaded.open("model")["weight"] == loaded.step).all()
    assert (loaded.open("optimizer")["sum"] == loaded.step).all()
    best = Checkpoints(run).best
    assert best is None or best >= loaded.step - 5 and best % 5 == 0
    num_saves = loaded.step
print(num_saves)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_kill_9_in_the_middle_of_saves_loses_nothing(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "damaged" not in result.stderr
    assert int(result.stdout) >= 40
    assert len(Checkpoints(tmp_path).steps) <= 4


def test_files_are_what_others_read(tmp_path: Path) -> None:
    save(tmp_path, 5)
    names = sorted(path.name for path in (tmp_path / "step-5").iterdir())
    assert names == ["checksums.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((tmp_path / "step-5" / "state.json").read_text()) == {"step": 5}


def test_files_honour_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(tmp_path, 5)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "step-5").iterdir()}
    assert modes == {0o640}


@pytest.mark.parametrize("name", ["model.safetensors", "checksums.json"])
def test_what_may_not_be_read_is_not_called_damaged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 10, 20)

    def denied(file: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    if name == "checksums.json":
        monkeypatch.setattr(Path, "read_text", lambda self, **_: denied(self))
    else:
        monkeypatch.setattr(step_folder, "checksum", denied)
    with pytest.raises(UserError, match=r"step-20/\w+\.\w+ may not be read \(permission denied\)"):
        Checkpoints(tmp_path).load()
    assert capsys.readouterr().err == ""


def test_the_campaign_against_saving() -> None:
    """A few of its kills, and its full disks as far as the time goes."""
    script = Path(__file__).parents[2] / "benchmarks" / "faults" / "saving.py"
    command = [sys.executable, str(script), "--kills", "12", "--seconds", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("0 failed\n")


def test_a_folder_whose_name_a_terminal_would_obey(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "\x1b[31mred"
    save(run, 1, 2)
    (run / "step-2" / "state.json").write_text("{}")
    assert Checkpoints(run).load().step == 1
    said = capsys.readouterr().err
    assert "\\x1b[31mred, step 2 is damaged" in said and "\x1b" not in said
