"""Averages the last checkpoints of a run to one model.

Each parameter is the mean of its values at those steps, as Polyak and Juditsky (1992) average
iterates. One step is read at a time, so the memory of two models is enough.
"""

from __future__ import annotations

from torch import Tensor

from thinwire.errors import UserError
from thinwire.runs.checkpoints import Checkpoints


def average_parameters(
    checkpoints: Checkpoints, num_steps: int
) -> tuple[list[int], dict[str, Tensor]]:
    """The newest `num_steps` steps on disk, ascending, and the mean of their parameters by name.

    Raises:
        UserError: there are fewer steps, or one of them is damaged.
    """
    if num_steps < 1:
        raise UserError(f"the average is to be of {num_steps} steps, and must be of 1 or more")
    on_disk = checkpoints.steps
    if num_steps > len(on_disk):
        raise UserError(
            f"{checkpoints.run} keeps {len(on_disk)} steps, so {num_steps} cannot be averaged: "
            "checkpoint.keep sets how many a run keeps"
        )
    steps, total = on_disk[-num_steps:], dict[str, Tensor]()
    for step in steps:
        for name, parameter in checkpoints.load(step).open("model").items():
            total[name] = total[name].add_(parameter) if name in total else parameter
    return steps, {name: parameter.div_(num_steps) for name, parameter in total.items()}
