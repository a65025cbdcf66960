"""thinwire: train a neural language model on the machines you have.

Only the public names, re-exported; nothing else. Each is imported when it is first asked for, so
`import thinwire` costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinwire.data.corpus import Corpus as Corpus
    from thinwire.errors import UserError as UserError
    from thinwire.inference.load import load as load
    from thinwire.loss.nce import NCE as NCE
    from thinwire.loss.sampled import SampledSoftmax as SampledSoftmax
    from thinwire.loss.sampler import Sampler as Sampler
    from thinwire.optim.adaptahead import AdaptAhead as AdaptAhead
    from thinwire.optim.rowadam import RowAdam as RowAdam
    from thinwire.optim.rowwise import FullAdagrad as FullAdagrad
    from thinwire.optim.rowwise import RowAdagrad as RowAdagrad
    from thinwire.optim.rowwise import RowSGD as RowSGD

__version__ = "0.1.0"

_HOME = {
    "AdaptAhead": "thinwire.optim.adaptahead",
    "Corpus": "thinwire.data.corpus",
    "FullAdagrad": "thinwire.optim.rowwise",
    "load": "thinwire.inference.load",
    "NCE": "thinwire.loss.nce",
    "RowAdagrad": "thinwire.optim.rowwise",
    "RowAdam": "thinwire.optim.rowadam",
    "RowSGD": "thinwire.optim.rowwise",
    "SampledSoftmax": "thinwire.loss.sampled",
    "Sampler": "thinwire.loss.sampler",
    "UserError": "thinwire.errors",
}

__all__ = [
    "NCE",
    "AdaptAhead",
    "Corpus",
    "FullAdagrad",
    "RowAdagrad",
    "RowAdam",
    "RowSGD",
    "SampledSoftmax",
    "Sampler",
    "UserError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'thinwire' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
