"""Row optimisers, which update only touched rows, and their settings, clipping and schedules.

Each name is imported when it is first asked for, so that settings can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinwire.optim.adaptahead import AdaptAhead
    from thinwire.optim.build import dense_optimizer, row_optimizer
    from thinwire.optim.clipping import clip_gradients, gradients_of
    from thinwire.optim.config import OptimConfig
    from thinwire.optim.rowadam import RowAdam
    from thinwire.optim.rows import RowOptimizer
    from thinwire.optim.rowwise import FullAdagrad, RowAdagrad, RowSGD
    from thinwire.optim.schedules import Schedule
    from thinwire.optim.state import load_named_state, named_state

_HOME = {
    "AdaptAhead": "adaptahead",
    "FullAdagrad": "rowwise",
    "OptimConfig": "config",
    "RowAdagrad": "rowwise",
    "RowAdam": "rowadam",
    "RowOptimizer": "rows",
    "RowSGD": "rowwise",
    "Schedule": "schedules",
    "clip_gradients": "clipping",
    "dense_optimizer": "build",
    "gradients_of": "clipping",
    "load_named_state": "state",
    "named_state": "state",
    "row_optimizer": "build",
}

__all__ = [
    "AdaptAhead",
    "FullAdagrad",
    "OptimConfig",
    "RowAdagrad",
    "RowAdam",
    "RowOptimizer",
    "RowSGD",
    "Schedule",
    "clip_gradients",
    "dense_optimizer",
    "gradients_of",
    "load_named_state",
    "named_state",
    "row_optimizer",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
