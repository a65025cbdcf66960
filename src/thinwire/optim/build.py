"""From settings to optimisers: one for the dense blocks, one for the rows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from thinwire.optim.config import OptimConfig
from thinwire.optim.rows import RowOptimizer
from thinwire.optim.rowwise import RowAdagrad, RowSGD


def dense_optimizer(parameters: Iterable[Tensor], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of blocks that every step touches whole; `config.kind` says which."""
    betas = (config.beta1, config.beta2)
    match config.kind:
        case "sgd":
            return torch.optim.SGD(list(parameters), config.lr)
        case "adagrad":
            return torch.optim.Adagrad(
                list(parameters),
                config.lr,
                initial_accumulator_value=config.initial_accumulator,
            )
        case "adam":
            return torch.optim.Adam(list(parameters), config.lr, betas=betas, fused=True)
        case "adamw":
            return torch.optim.AdamW(
                list(parameters),
                config.lr,
                betas=betas,
                weight_decay=config.weight_decay,
                fused=True,
            )
    raise NotImplementedError(config.kind)


def row_optimizer(parameters: Iterable[Tensor], config: OptimConfig) -> RowOptimizer:
    """The optimiser of embedding and output rows; `config.rows` says which."""
    match config.rows:
        case "sgd":
            return RowSGD(list(parameters), config.row_lr)
        case "adagrad":
            return RowAdagrad(
                list(parameters),
                config.row_lr,
                initial_accumulator_value=config.initial_accumulator,
            )
    raise NotImplementedError(config.rows)
