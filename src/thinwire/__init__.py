"""thinwire: train a neural language model on the machines you have.

Only the public names, re-exported; nothing else. Each is imported when it is first asked for, so
`import thinwire` costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinwire.errors import UserError as UserError
    from thinwire.loss.nce import NCE as NCE
    from thinwire.loss.sampled import SampledSoftmax as SampledSoftmax
    from thinwire.loss.sampler import Sampler as Sampler
    from thinwire.optim.rowwise import RowAdagrad as RowAdagrad
    from thinwire.optim.rowwise import RowSGD as RowSGD

__version__ = "0.1.0"

_HOME = {
    "UserError": "thinwire.errors",
    "NCE": "thinwire.loss.nce",
    "SampledSoftmax": "thinwire.loss.sampled",
    "Sampler": "thinwire.loss.sampler",
    "RowAdagrad": "thinwire.optim.rowwise",
    "RowSGD": "thinwire.optim.rowwise",
}

__all__ = [
    "NCE",
    "RowAdagrad",
    "RowSGD",
    "SampledSoftmax",
    "Sampler",
    "UserError",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'thinwire' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
