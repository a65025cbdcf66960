"""How parameters travel from a server to a worker.

In fp32 with codec fp32, and in bf16 with every other: an error in a gradient is averaged away, one
in a parameter is not. With int8 and int4 a block, which every update changes as a whole but little,
goes so once; from then on its difference to what the worker holds of it does, in int4. The server
keeps a copy of that, equal to the bit, so what rounding leaves out of one difference is in the
next, and errors do not pile up (EF21-P: Gruntkowska, Tyurin, Richtarik 2022, arXiv 2209.15218).

R rows of a block.
"""

from __future__ import annotations

from torch import Size, Tensor

from thinwire.parameter_server.fields import decoded
from thinwire.wire.codecs import Codec, make_codec


class ParameterCodec:
    """The codecs of parameters, where gradients travel in this one.

    Attributes:
        whole: of rows of tables, and of blocks that the worker does not hold yet.
        differences: of other blocks; None: they, too, travel whole.
    """

    def __init__(self, gradients: str) -> None:
        self.whole: Codec = make_codec("fp32" if gradients == "fp32" else "bf16")
        self.differences: Codec | None = None
        if gradients in ("int8", "int4"):
            self.differences = make_codec("int4")

    def of_blocks(self, *, whole: bool) -> Codec:
        """The codec of blocks, in an answer that says whether they are whole."""
        return self.whole if whole or self.differences is None else self.differences

    def change(self, held: Tensor, ids_R: Tensor | None, data: Tensor, *, whole: bool) -> None:
        """Bring a copy of a block up to date with what was sent of it.

        Args:
            held: the copy.
            ids_R: the rows that were sent, int64, none twice; None: all.
            data: their bytes.
            whole: whether they are the rows themselves; else differences may have been sent.

        Raises:
            ValueError: there are not as many bytes as they have.
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
