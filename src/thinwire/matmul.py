"""The matrix products of the output layer, through the fastest library at hand.

On a CPU, PyTorch multiplies fp32 matrices with MKL, which on AMD processors runs at less than
half the rate of oneDNN; on Intel processors the two are close. Both are in PyTorch, and the
operator below is the one its compiler emits for a linear layer.

Factors may be rounded to bf16 first, which has fp32's range and 8 bits of precision. Their products
are added up in fp32; on a CPU each finished sum is rounded to bf16 once, for oneDNN returns the
type that it is given. Biases are added in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ONEDNN_KNOWS_BF16 = _ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Whether it multiplies in bf16 here; on processors without AVX-512 it refuses."""
# Where it refuses, PyTorch computes, slowly.
_TYPES = [torch.float32, *([torch.bfloat16] if ONEDNN_KNOWS_BF16 else [])]


def matmul_nt(
    a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None, *, in_bf16: bool = False
) -> Tensor:
    """`a @ b.T + bias`: `[M, K]`, `[N, K]`, `[N]` -> `[M, N]`. Not differentiable.

    With `in_bf16` the factors are rounded to bf16; the result has the type of `a` all the same.
    """
    if in_bf16:
        product_MN = _matmul_nt(a_MK.bfloat16(), b_NK.bfloat16(), None).to(a_MK.dtype)
        return product_MN if bias_N is None else product_MN.add_(bias_N)
    return _matmul_nt(a_MK, b_NK, bias_N)


def _matmul_nt(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    on_cpu = a_MK.device.type == "cpu" and a_MK.dtype in _TYPES
    if _ONEDNN and on_cpu and a_MK.numel() and b_NK.numel():  # oneDNN knows no empty matrices
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, bias_N, "none", [], "")
        return product
    return F.linear(a_MK, b_NK, bias_N)
