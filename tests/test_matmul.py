"""The faster product is the product."""

from __future__ import annotations

import pytest
import torch

from thinwire.matmul import matmul_nt


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("M", "N", "K"), [(0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1), (5, 7, 3), (64, 100, 33)]
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_product(
    M: int, N: int, K: int, transposed: bool, with_bias: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(M * N + K)
    shapes = ((K, M), (K, N)) if transposed else ((M, K), (N, K))
    a_MK, b_NK = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    if transposed:
        a_MK, b_NK = a_MK.t(), b_NK.t()
    bias_N = torch.randn(N, generator=generator, dtype=dtype) if with_bias else None
    expected = a_MK @ b_NK.t() + (0.0 if bias_N is None else bias_N)
    torch.testing.assert_close(matmul_nt(a_MK, b_NK, bias_N), expected, rtol=1e-5, atol=1e-5)


def test_in_bf16_only_factors_and_finished_sums_are_rounded() -> None:
    generator = torch.Generator().manual_seed(1)
    a_MK, b_NK = (
        torch.randn(5, 4096, generator=generator),
        torch.randn(3, 4096, generator=generator),
    )
    bias_N = torch.tensor([1000.1, 0.0, -1000.1])
    exact_MN = a_MK.bfloat16().double() @ b_NK.bfloat16().double().t()
    found_MN = matmul_nt(a_MK, b_NK, bias_N, in_bf16=True)
    assert found_MN.dtype == torch.float32
    # Half a unit of bf16's 8 bits is 2^-9 of a sum; twice that for sums in another order. Biases
    # keep all of fp32.
    error_MN = (found_MN.double() - bias_N - exact_MN).abs()
    assert bool((error_MN <= exact_MN.abs() * 2.0**-8 + 1e-3).all())
