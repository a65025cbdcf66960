"""Loads and checks a body that the user has written: `model.kind = "package.module:Class"`.

The class is a subclass of `thinwire.Body` whose constructor takes a `thinwire.ModelConfig`. Python
must be able to import it. A run saves only its name, and not its code.

B streams, T tokens, D width.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from thinwire.errors import UserError
from thinwire.models.config import CLASS_SEPARATOR, ModelConfig
from thinwire.models.contract import Body
from thinwire.seeds import torch_generator

B, T = 2, 3


def load_custom_body(config: ModelConfig) -> Body:
    """Create the body that `model.kind` names, with these settings.

    Raises:
        UserError: there is no such class, or it is not a usable `Body`.
    """
    module, _, name = config.kind.partition(CLASS_SEPARATOR)
    if module == "__main__":
        raise UserError(
            f"model.kind is {config.kind}, and commands that load the run later do not find what "
            "is defined in __main__: put the class into a module of its own"
        )
    try:
        made: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"model.kind is {config.kind}, which cannot be imported ({error}): its module must be "
            "installed, or in a folder of PYTHONPATH"
        ) from None
    if not (isinstance(made, type) and issubclass(made, Body)):
        raise UserError(f"model.kind is {config.kind}, which is no thinwire.Body")
    if missing := sorted(getattr(made, "__abstractmethods__", ())):
        raise UserError(f"model.kind is {config.kind}, which does not define {', '.join(missing)}")
    if not isinstance(getattr(made, "carries_state", None), bool):
        raise UserError(
            f"model.kind is {config.kind}, which does not say whether it carries_state: set it to "
            "True or False in the class"
        )
    body: Body = made(config)
    return body


@torch.no_grad()
def check_body(body: Body, config: ModelConfig) -> None:
    """Run a body on random rows, and check the shapes of its results and that it is causal.

    Raises:
        UserError: the body breaks the contract of `Body`.
    """
    generator = torch_generator(0, "check body")
    rows_RE = torch.randn(2 * T, config.input_width, generator=generator)
    ids_BT = torch.arange(B * T).view(B, T)
    hidden_BTD, state = body(body.embed(rows_RE, ids_BT), None, None)
    if hidden_BTD.shape != (B, T, config.width):
        raise UserError(
            f"{config.kind} returned hidden states {list(hidden_BTD.shape)} for {B} streams of {T} "
            f"tokens, and must return {[B, T, config.width]}"
        )
    if bool(state) != body.carries_state or any(len(part) != B for part in state):
        raise UserError(
            f"{config.kind} returned a state of {[list(part.shape) for part in state]} for {B} "
            f"streams, and says that it carries {'one' if body.carries_state else 'none'}: it must "
            "be a tuple of tensors whose first dimension is the stream, or ()"
        )
    ids_BT[:, -1] = 0
    changed_BTD, _ = body(body.embed(rows_RE, ids_BT), None, None)
    if not torch.allclose(changed_BTD[:, :-1], hidden_BTD[:, :-1], atol=1e-5):
        raise UserError(
            f"{config.kind} looks ahead: hidden states change with a token that comes after them"
        )
