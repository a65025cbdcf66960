"""How parameters travel from a server to a worker.

With codec fp32 parameters are sent in fp32, with every other codec in bf16: errors of gradients
average out over steps, errors of parameters do not. With codec int8 or int4, a block is sent once
in bf16. From then on, only its difference to the worker's copy is sent, in int4, because each
update changes every value of a block a little. The server keeps a bit-equal copy of what the worker
has. So the next difference contains what rounding left out of the last one, and errors do not
accumulate (EF21-P: Gruntkowska, Tyurin, Richtarik 2022, arXiv 2209.15218).

R rows of a block.
"""

from __future__ import annotations

from torch import Size, Tensor

from thinwire.parameter_server.fields import decoded
from thinwire.wire.codecs import Codec, make_codec


class ParameterCodec:
    """The codecs of parameters in a run whose gradients use the given codec.

    Attributes:
        whole: for rows of tables, and for blocks that the worker does not have yet.
        differences: for changes of blocks; None: blocks are always sent whole.
    """

    def __init__(self, gradients: str) -> None:
        self.whole: Codec = make_codec("fp32" if gradients == "fp32" else "bf16")
        self.differences: Codec | None = None
        if gradients in ("int8", "int4"):
            self.differences = make_codec("int4")

    def of_blocks(self, *, whole: bool) -> Codec:
        """The codec of the blocks in an answer that has them whole, or as differences."""
        return self.whole if whole or self.differences is None else self.differences

    def change(self, held: Tensor, ids_R: Tensor | None, data: Tensor, *, whole: bool) -> None:
        """Update a copy of a block with what was sent.

        Args:
            held: the copy.
            ids_R: the rows that were sent, int64, none twice; None: all.
            data: their bytes.
            whole: whether the rows themselves were sent, not differences.

        Raises:
            ValueError: the number of bytes does not fit the rows.
        """
        shape = held.shape if ids_R is None else Size((len(ids_R), *held.shape[1:]))
        values = decoded(self.of_blocks(whole=whole), data, shape).to(held.device)
        adds = not whole and self.differences is not None
        if ids_R is None and adds:
            held.add_(values)
        elif ids_R is None:
            held.copy_(values)
        elif adds:
            held.index_add_(0, ids_R.to(held.device), values)
        else:
            held.index_copy_(0, ids_R.to(held.device), values)
