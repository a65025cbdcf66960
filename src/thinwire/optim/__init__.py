"""Optimisers that change only what was touched, and what steers them.

The names load on first use, so that reading a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinwire.optim.build import dense_optimizer, row_optimizer
    from thinwire.optim.config import OptimConfig
    from thinwire.optim.rows import RowOptimizer
    from thinwire.optim.rowwise import RowAdagrad, RowSGD

_HOME = {
    "OptimConfig": "config",
    "RowAdagrad": "rowwise",
    "RowOptimizer": "rows",
    "RowSGD": "rowwise",
    "dense_optimizer": "build",
    "row_optimizer": "build",
}

__all__ = [
    "OptimConfig",
    "RowAdagrad",
    "RowOptimizer",
    "RowSGD",
    "dense_optimizer",
    "row_optimizer",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
