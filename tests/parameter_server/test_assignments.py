"""Places in the text, and a run that goes on with another number of workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.parameter_server.assignments import Assignments
from thinwire.parameter_server.protocol import Position
from thinwire.parameter_server.resuming import slot_positions
from thinwire.runs.run import Run

Settings = Callable[..., RunConfig]
LENGTH, BATCH = 7, 4
# Passes over the text: of four workers, one of which is slow; 2.33 on average.
READ = (3.1, 2.5, 2.9, 0.82)


def steps_per_epoch(num_tokens: int, workers: int) -> int:
    """The text is cut into equal streams, read seven tokens a step."""
    return num_tokens // (workers * BATCH) // LENGTH


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("joined", [4, 2], ids=["all", "half"])
def test_the_part_of_the_text_that_is_read_is_kept(
    workers: int, joined: int, toy_data: Path, tiny: Settings
) -> None:
    corpus = Corpus.open(toy_data)
    num_tokens = len(corpus.ids("train"))
    before = Assignments(4, {})
    per_epoch = steps_per_epoch(num_tokens, 4)
    for place, epochs in enumerate(READ[:joined]):
        step = round((epochs - int(epochs)) * per_epoch)
        exact = int(epochs) + step / per_epoch
        before.move(place, Position(int(epochs), step, 1000, exact))
    epoch, step = before.middle()
    saved = {
        "epoch": epoch,
        "step": step,
        "streams": 4 * BATCH,
        "length": LENGTH,
        "workers": 4,
        "epochs": before.epochs,
        "places": before.state(),
    }
    run = Run(None, tiny(run={"workers": workers}), corpus, torch.device("cpu"), workers)
    after = Assignments(workers, slot_positions(run, saved))
    tolerance = 0.5 / steps_per_epoch(num_tokens, workers) if workers != 4 else 0.0
    assert after.epochs == pytest.approx(before.epochs, abs=tolerance + 1e-12)
    # One that holds the whole model reads on at the same part of the text, too.
    assert epoch + step / per_epoch == pytest.approx(before.epochs, abs=1 / per_epoch)


def test_the_same_streams_cut_for_fewer_workers(toy_data: Path, tiny: Settings) -> None:
    """Four workers of 4 sequences become two of 8: as many streams, other places."""
    before = Assignments(4, {str(p): [1, 0, 10, 1.0] for p in range(4)})
    saved = {"epoch": 1, "step": 0, "streams": 16, "length": LENGTH, "workers": 4}
    saved |= {"epochs": before.epochs, "places": before.state()}
    config = tiny(run={"workers": 2}, data={"batch": 8})
    run = Run(None, config, Corpus.open(toy_data), torch.device("cpu"), 2)
    assert Assignments(2, slot_positions(run, saved)).epochs == 1.0


def test_a_single_place_is_where_it_is() -> None:
    assert Assignments(1, {"0": [2, 5, 9, 2.1]}).middle() == (2, 5)
    assert Assignments(1, {}).middle() == (0, 0)


@pytest.mark.parametrize(
    "position",
    [
        Position(1, 5, 5, 1.0),
        Position(1, 5, 5, 0.5),
        Position(0, 2**53, 5, 5e-324),
        Position(2**53, 1, 1, 2.0**53),
    ],
)
def test_nonsense_about_a_position_is_no_error(position: Position) -> None:
    assignments = Assignments(2, {})
    assignments.move(0, position)
    assignments.move(1, Position(0, 3, 3, 0.25))
    epoch, step = assignments.middle()
    assert epoch >= 0 and step >= 0
    assert Assignments(2, json.loads(json.dumps(assignments.state()))).epochs == assignments.epochs


@pytest.mark.parametrize(
    ("before", "after", "jumps"),
    [
        (Position(0, 4999, 4999, 0.9998), Position(1, 0, 5000, 1.0), False),
        (Position(0, 4990, 4990, 0.998), Position(1, 3, 5003, 1.0006), False),
        (Position(0, 10, 10, 0.002), Position(0, 11, 11, 0.0022), False),
        (Position(0, 10, 10, 0.002), Position(0, 2**53, 11, 0.0022), True),
        (Position(0, 10, 10, 0.002), Position(1, 2**53, 11, 0.0022), True),
        (Position(0, 10, 10, 0.002), Position(2**53, 0, 11, 0.0022), True),
        (Position(3, 10, 10, 3.002), Position(2, 2000, 11, 3.0022), True),
    ],
)
def test_a_worker_reads_on_and_does_not_jump(
    before: Position, after: Position, jumps: bool
) -> None:
    assignments = Assignments(1, {})
    assignments.move(0, before)
    with pytest.raises(ValueError, match="has jumped") if jumps else nullcontext():
        assignments.check(0, after)


def test_a_jump_is_no_step() -> None:
    assignments = Assignments(1, {"0": [2, 5, 9, 2.1]})
    assignments.check(0, Position(2, 6, 10, 2.2))
    assignments.check(0, Position(0, 0, 0, 0.0))
    for position in (Position(2, 6, 10**6, 2.2), Position(9, 6, 10, 1e9)):
        with pytest.raises(ValueError, match="a worker has jumped"):
            assignments.check(0, position)
