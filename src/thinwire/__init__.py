"""thinwire: train a neural language model on the machines you have.

Only the public names, re-exported; nothing else. Each is imported when it is first asked for, so
`import thinwire` costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinwire.data.corpus import Corpus as Corpus
    from thinwire.data.prepare import prepare as prepare
    from thinwire.errors import UserError as UserError
    from thinwire.inference.load import load as load
    from thinwire.inference.trained_model import TrainedModel as TrainedModel
    from thinwire.launch.train import train as train
    from thinwire.loss.nce import NCE as NCE
    from thinwire.loss.sampled import SampledSoftmax as SampledSoftmax
    from thinwire.loss.sampler import Sampler as Sampler
    from thinwire.models.config import ModelConfig as ModelConfig
    from thinwire.models.contract import Body as Body
    from thinwire.optim.adaptahead import AdaptAhead as AdaptAhead
    from thinwire.optim.rowadam import RowAdam as RowAdam
    from thinwire.optim.rowwise import FullAdagrad as FullAdagrad
    from thinwire.optim.rowwise import RowAdagrad as RowAdagrad
    from thinwire.optim.rowwise import RowSGD as RowSGD

__version__ = "0.1.0"

_HOME = {
    "AdaptAhead": "thinwire.optim.adaptahead",
    "Body": "thinwire.models.contract",
    "Corpus": "thinwire.data.corpus",
    "FullAdagrad": "thinwire.optim.rowwise",
    "load": "thinwire.inference.load",
    "ModelConfig": "thinwire.models.config",
    "NCE": "thinwire.loss.nce",
    "prepare": "thinwire.data.prepare",
    "RowAdagrad": "thinwire.optim.rowwise",
    "RowAdam": "thinwire.optim.rowadam",
    "RowSGD": "thinwire.optim.rowwise",
    "SampledSoftmax": "thinwire.loss.sampled",
    "Sampler": "thinwire.loss.sampler",
    "train": "thinwire.launch.train",
    "TrainedModel": "thinwire.inference.trained_model",
    "UserError": "thinwire.errors",
}

__all__ = [
    "NCE",
    "AdaptAhead",
    "Body",
    "Corpus",
    "FullAdagrad",
    "ModelConfig",
    "RowAdagrad",
    "RowAdam",
    "RowSGD",
    "SampledSoftmax",
    "Sampler",
    "TrainedModel",
    "UserError",
    "__version__",
    "load",
    "prepare",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'thinwire' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
