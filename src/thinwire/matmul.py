"""The matrix products of the output layer, through the fastest library at hand.

On a CPU, PyTorch multiplies fp32 matrices with MKL, which on AMD processors runs at less than
half the rate of oneDNN; on Intel processors the two are close. Both are in PyTorch, and the
operator below is the one its compiler emits for a linear layer. It computes in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def matmul_nt(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """`a @ b.T + bias`: `[M, K]`, `[N, K]`, `[N]` -> `[M, N]`. Not differentiable."""
    on_cpu = a_MK.device.type == "cpu" and a_MK.dtype == torch.float32
    if _ONEDNN and on_cpu and a_MK.numel() and b_NK.numel():  # oneDNN knows no empty matrices
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, bias_N, "none", [], "")
        return product
    return F.linear(a_MK, b_NK, bias_N)
