"""Codecs: sizes are exact, round trips are as near as they say, and rounding by chance is fair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.seeds import derive
from thinwire.wire.codecs import Codec, make_codec

torch.set_num_threads(1)

CODECS = [make_codec(name) for name in ("fp32", "bf16", "int8", "int4")]
FP32, BF16, INT8, INT4 = CODECS
scaled = pytest.mark.parametrize("codec", CODECS[2:], ids=lambda codec: codec.name)
SHAPES = [(), (1,), (7,), (0,), (0, 4), (4, 0), (1, 1), (1, 9), (5, 1), (3, 7), (2, 3, 5), (70, 33)]
each = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def rows_of(values: Tensor) -> Tensor:
    return values.reshape(len(values) if values.dim() > 1 else 1, -1)


def steps_of(codec: Codec, values: Tensor) -> int:
    """How many steps the largest number is away from zero; vectors are never int4."""
    return 7 if codec is INT4 and values.dim() > 1 else 127


def tolerance(codec: Codec, values: Tensor) -> Tensor:
    """How far each number may be from what it was, to the nearest."""
    if codec.name == "fp32":
        return torch.zeros_like(values)
    if codec.name == "bf16":
        return values.abs() * 2**-8
    step = rows_of(values).abs().amax(1) / steps_of(codec, values)
    return (step[:, None] * 0.5001).expand_as(rows_of(values)).reshape(values.shape)


@each
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_round_trip(codec: Codec, shape: tuple[int, ...], scale: float) -> None:
    values = scale * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    data = codec.encode(values)
    assert data.dtype == torch.uint8 and data.shape == (codec.num_bytes(shape),)
    found = codec.decode(data, shape)
    assert found.dtype == torch.float32 and found.shape == values.shape
    if values.numel():
        assert bool(((found - values).abs() <= tolerance(codec, values)).all())
    else:
        assert not len(data)


def test_sizes_are_those_documented() -> None:
    for shape, numbers, rows in [((), 1, 1), ((7,), 7, 1), ((3, 7), 21, 3), ((2, 3, 5), 30, 2)]:
        assert FP32.num_bytes(shape) == 4 * numbers
        assert BF16.num_bytes(shape) == 2 * numbers
        assert INT8.num_bytes(shape) == 4 * rows + numbers
    for shape, num_bytes in [((), 5), ((7,), 11), ((3, 7), 12 + 11), ((2, 3, 5), 8 + 15)]:
        assert INT4.num_bytes(shape) == num_bytes
    for shape in ((0,), (0, 4), (4, 0)):
        assert [codec.num_bytes(shape) for codec in CODECS] == [0, 0, 0, 0]


def test_fp32_keeps_every_bit() -> None:
    odd = torch.tensor([0.0, -0.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan")])
    found = FP32.decode(FP32.encode(odd), odd.shape)
    assert torch.equal(found.view(torch.int32), odd.view(torch.int32))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_does_not_arrive_as_if_it_were(bad: float) -> None:
    values = torch.ones(3, 4)
    values[1, 2] = bad
    for codec in CODECS:
        for seed in (None, 0):
            found = codec.decode(codec.encode(values, seed), values.shape)
            assert not bool(found[1].isfinite().all())
            assert torch.equal(found[[0, 2]], torch.ones(2, 4))  # its neighbours are as they were


@each
def test_zeros_stay_zeros_beside_large_numbers(codec: Codec) -> None:
    values = torch.tensor([[0.0, 0.0, 0.0], [1e30, 0.0, -1e30]])
    found = codec.decode(codec.encode(values, 3), values.shape)
    assert not found[0].any() and found[1, 1] == 0
    torch.testing.assert_close(found[1], values[1], rtol=2**-8, atol=0)


@each
def test_the_largest_numbers_stay_finite(codec: Codec) -> None:
    values = torch.tensor([[3.38e38, -3.38e38, 1.0]])
    found = codec.decode(codec.encode(values), values.shape)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[0, :2], values[0, :2], rtol=2**-8, atol=0)


@each
@pytest.mark.parametrize("seed", [None, 0, 5])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_the_largest_floats_saturate(
    codec: Codec, shape: tuple[int, ...], seed: int | None
) -> None:
    largest = torch.finfo(torch.float32).max
    for bound in (largest, float(torch.tensor(largest).nextafter(torch.zeros(())))):
        values = torch.full(shape, bound)
        values.view(-1)[-1] = -bound
        found = codec.decode(codec.encode(values, seed), shape)
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found, values, rtol=2**-8, atol=0)


def test_bf16_saturates_what_rounds_to_infinity_and_nothing_else() -> None:
    largest = torch.finfo(torch.bfloat16).max
    halfway = largest * (1 + 2**-9)  # from here on rounding leads past the largest
    values = torch.tensor([3.39e38, halfway, -halfway, float("inf"), float("-inf"), 1.0])
    found = BF16.decode(BF16.encode(values), values.shape)
    assert found[:3].tolist() == [largest, largest, -largest]
    assert torch.equal(found[3:], values[3:])


@scaled
def test_pieces_of_the_largest_floats_saturate(codec: Codec) -> None:
    values = torch.full((4, 3), torch.finfo(torch.float32).max)
    values[2, 1] = float("nan")
    first, second = codec.encode_pieces(values, 2)
    assert torch.equal(codec.decode(first, (2, 3)), codec.decode(codec.encode(values[:2]), (2, 3)))
    found = codec.decode(second, (2, 3))
    assert bool(found[0].isnan().all()) and bool(found[1].isfinite().all())


@each
def test_memory_is_its_own(codec: Codec) -> None:
    values = torch.randn(3, 4)
    data = codec.encode(values)
    found = codec.decode(data, values.shape)
    before = found.clone()
    data.zero_()
    assert torch.equal(found, before)


@each
def test_parameters_are_values_too(codec: Codec) -> None:
    values = torch.randn(3, 4)
    parameter = torch.nn.Parameter(values.clone())
    assert torch.equal(codec.encode(parameter, 1), codec.encode(values, 1))


@each
def test_what_is_not_contiguous(codec: Codec) -> None:
    values = torch.arange(12.0).view(3, 4).t()
    assert torch.equal(codec.encode(values), codec.encode(values.contiguous()))
    assert codec.decode(codec.encode(values), values.shape).shape == (4, 3)


@each
def test_a_part_of_a_message_may_stand_anywhere(codec: Codec) -> None:
    values = torch.randn(3, 5)
    data = torch.cat([torch.zeros(3, dtype=torch.uint8), codec.encode(values)])
    assert torch.equal(codec.decode(data[3:], (3, 5)), codec.decode(data[3:].clone(), (3, 5)))


@each
@pytest.mark.parametrize("shape", [(0,), (7,), (3, 7)])
@pytest.mark.parametrize("change", [-1, 1, 4])
def test_bytes_of_another_size_are_refused(
    codec: Codec, shape: tuple[int, ...], change: int
) -> None:
    num_bytes = codec.num_bytes(shape) + change
    if num_bytes < 0:
        return
    with pytest.raises(ValueError, match=f"{codec.num_bytes(shape)} .* {num_bytes}"):
        codec.decode(torch.zeros(num_bytes, dtype=torch.uint8), shape)


def test_two_numbers_share_a_byte_of_int4() -> None:
    """Scale 0.5; the steps are 1, -7, 7 in the lower halves and 0, 3 in the upper, with 8 added."""
    values = torch.tensor([[0.5, -3.5, 3.5, 0.0, 1.5]])
    data = INT4.encode(values)
    assert data[:4].view(torch.float32).tolist() == [0.5]
    assert data[4:].tolist() == [0x89, 0xB1, 0x0F]
    assert torch.equal(INT4.decode(data, values.shape), values)


@scaled
def test_rounding_by_chance_keeps_the_mean(codec: Codec) -> None:
    """The mean of n decoded draws lies within 5 standard errors of the number, at every number."""
    n = 4000
    values = torch.linspace(-1.0, 1.0, 41)[None]
    step = 1.0 / steps_of(codec, values)
    seeds = [derive(0, "test", step=number) for number in range(n)]
    draws = torch.stack([codec.decode(codec.encode(values, s), values.shape) for s in seeds])
    assert bool(((draws - values).abs() <= step * 1.0001).all())
    # A draw is one of two neighbours a step apart: its deviation is half a step at most.
    error = (draws.double().mean(0) - values.double()).abs()
    assert bool((error <= 5 * 0.5 * step / n**0.5).all())
    nearest = codec.decode(codec.encode(values), values.shape)
    assert float((nearest - values).abs().max()) > 0.4 * step  # which to the nearest would not keep


@scaled
def test_rounding_by_chance_follows_its_seed(codec: Codec) -> None:
    values = torch.randn(9, 9)
    one, same, other = (codec.encode(values, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@scaled
@given(
    rows=st.lists(
        st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_no_number_is_off_by_more_than_a_step_of_its_row(
    codec: Codec, rows: list[list[float]]
) -> None:
    values = torch.tensor(rows)
    found = codec.decode(codec.encode(values, 1), values.shape)
    step = values.abs().amax(1, keepdim=True) / steps_of(codec, values)
    # Where a scale is too small to be a number of full precision, a step may be a little more.
    assert bool(((found - values).abs() <= step * 1.001 + 1e-36).all())


@each
@pytest.mark.parametrize(
    "shape", [(), (2,), (7,), (0,), (0, 4), (3, 7), (8, 2, 5), (300, 256)], ids=str
)
@pytest.mark.parametrize("num_pieces", [1, 4])
def test_pieces_are_rounded_as_one(codec: Codec, shape: tuple[int, ...], num_pieces: int) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    cut = (values if values.dim() > 1 else values.reshape(-1)).tensor_split(num_pieces)
    messages = codec.encode_pieces(values, num_pieces, seed=3)
    assert len(messages) == num_pieces
    decoded = [codec.decode(m, piece.shape) for m, piece in zip(messages, cut, strict=True)]
    whole = codec.decode(codec.encode(values, 3), values.shape)
    assert torch.equal(torch.cat(decoded).reshape(values.shape), whole)


@scaled
def test_a_long_row_is_rounded_fairly_too(codec: Codec) -> None:
    """A row of more numbers than there is noise: the mean error of all is that of chance."""
    values = torch.full((1, 200_001), 0.3)
    values[0, 0] = 1.0
    found = codec.decode(codec.encode(values, 5), values.shape)
    step = 1.0 / steps_of(codec, values)
    assert float((found - values).abs().max()) <= step * 1.0001
    # All but the first lie equally far from a step: 5 deviations of the mean of so many draws.
    assert abs(float((found - values)[0, 1:].double().mean())) <= 5 * 0.5 * step / 32_768**0.5


def test_unknown_codecs_have_no_name() -> None:
    with pytest.raises(KeyError):
        make_codec("fp8")
