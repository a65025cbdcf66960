"""A loss that has gone wrong is noticed, and the sentence says what was saved and what to try."""

from __future__ import annotations

import pytest

from thinwire.optim.config import OptimConfig
from thinwire.runs.divergence import EXPLODED_NATS, LossWatch, diverged_sentence


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number(loss: float) -> None:
    watch = LossWatch(5.0)
    assert watch.observe(loss, step=3) == f"the loss is {loss} at step 3"
    assert (watch.smoothed, watch.lowest) == (5.0, 5.0)


def test_noise_is_no_divergence() -> None:
    watch = LossWatch(5.0)
    assert not any(watch.observe(loss, step) for step, loss in enumerate([3.0, 6.0] * 500))
    assert 4.0 < watch.lowest < watch.smoothed < 5.0


def test_a_loss_that_rises_and_stays_high() -> None:
    watch = LossWatch(4.0)
    found = [watch.observe(10.0, step) for step in range(100)]
    first = next(step for step, wrong in enumerate(found) if wrong)
    assert not any(found[:first]) and watch.lowest == 4.0
    assert found[first] == f"the loss has risen from 4.00 to 6.03 nats a token by step {first}"
    assert watch.smoothed > watch.lowest + EXPLODED_NATS


@pytest.mark.parametrize(
    ("newest", "best", "kept"),
    [
        (None, None, "no step had been saved yet"),
        (7, 7, "the newest state saved is step 7"),
        (7, None, "the newest state saved is step 7"),
        (7, 5, "the newest state saved is step 7, the best step 5"),
    ],
)
def test_the_sentence(newest: int | None, best: int | None, kept: str) -> None:
    sentence = diverged_sentence("the loss is nan", newest, best, OptimConfig(warmup_steps=9))
    assert sentence.startswith(f"the loss is nan, so training has stopped; {kept}. Try a lower ")
    assert "more --optim.warmup_steps (now 9)" in sentence
