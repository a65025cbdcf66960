"""Places in the text, and a run that goes on with another number of workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.parameter_server.assignments import Assignments
from thinwire.parameter_server.protocol import Position
from thinwire.parameter_server.resuming import places
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
    job = Run(None, tiny(run={"workers": workers}), corpus, torch.device("cpu"), workers)
    after = Assignments(workers, places(job, saved))
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
    job = Run(None, config, Corpus.open(toy_data), torch.device("cpu"), 2)
    assert Assignments(2, places(job, saved)).epochs == 1.0


def test_a_single_place_is_where_it_is() -> None:
    assert Assignments(1, {"0": [2, 5, 9, 2.1]}).middle() == (2, 5)
    assert Assignments(1, {}).middle() == (0, 0)


def test_a_jump_is_no_step() -> None:
    assignments = Assignments(1, {"0": [2, 5, 9, 2.1]})
    assignments.check(0, Position(2, 6, 10, 2.2))
    assignments.check(0, Position(0, 0, 0, 0.0))
    for position in (Position(2, 6, 10**6, 2.2), Position(9, 6, 10, 1e9)):
        with pytest.raises(ValueError, match="a worker has jumped"):
            assignments.check(0, position)
