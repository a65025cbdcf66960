"""Randomness is a function of four values, the same everywhere."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from thinwire.seeds import derive, numpy_generator, torch_generator


def test_the_same_on_every_machine() -> None:
    """Fixed, since saved runs depend on it: a change breaks their resume."""
    assert derive(0, "sample") == 681354204575607224
    assert derive(1, "dropout", "7", 42) == 6038717272158400330
    assert numpy_generator(1, "batches", "offset", 2).integers(1000, size=3).tolist() == [
        266,
        511,
        564,
    ]
    drawn = torch.randint(1000, (3,), generator=torch_generator(1, "sample", step=2))
    assert drawn.tolist() == [666, 832, 684]


def test_every_value_counts() -> None:
    keys = list(product((0, 1, -1), ("a", "b"), ("", "0", "x"), (0, 1, 11)))
    assert len({derive(*key) for key in keys}) == len(keys)
    assert all(0 <= derive(*key) < 2**63 for key in keys)


def test_generators_are_fresh_each_time() -> None:
    first = numpy_generator(3, "a").random(5)
    assert np.array_equal(first, numpy_generator(3, "a").random(5))
    state = torch_generator(3, "a").get_state()
    assert torch.equal(state, torch_generator(3, "a").get_state())
