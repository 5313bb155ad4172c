"""What makes the interpreter a witness of a GPU: bf16 as the hardware has it, and launches that must not pass."""

import os

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError

from fuxi_beta.ops.triton.launch import kernel

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU")


@kernel
def _copy(source, target, count, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(target + i, tl.load(source + i, mask=i < count, other=0.0).to(target.dtype.element_ty), mask=i < count)


def cast(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty_like(numbers, dtype=dtype)
    _copy[(1,)](numbers, out, len(numbers), SIZE=triton.next_power_of_2(len(numbers)))
    return out


def every_kind_of_float32() -> Tensor:
    """Random bits, numbers half way between two of bf16 and next to that, zeros, infinities, what is not a number."""
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (20_000,)).to(torch.int32)
    halves = bits.bitwise_and(-65536) + 32768
    corners = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, -3.4e38, 1e-45, 1e-38])
    return torch.cat([*(each.view(torch.float32) for each in (bits, halves, halves + 1, halves - 1)), corners])


def test_float32_becomes_the_nearest_bf16_and_bf16_its_own_number():
    numbers = every_kind_of_float32()
    found, expected = cast(numbers, torch.bfloat16), numbers.bfloat16()
    none = numbers.isnan()
    assert torch.equal(found.isnan(), none)
    assert torch.equal(found[~none].view(torch.int16), expected[~none].view(torch.int16))
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    torch.testing.assert_close(cast(every, torch.float32), every.float(), rtol=0, atol=0, equal_nan=True)


@kernel
def _multiply(a, b, out, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    found = tl.dot(tl.load(a + i * SIZE + j), tl.load(b + i * SIZE + j), input_precision=PRECISION)
    tl.store(out + i * SIZE + j, found)


def test_a_product_of_bf16_is_that_of_the_numbers():
    torch.manual_seed(1)
    a, b, out = torch.randn(32, 32).bfloat16(), torch.randn(32, 32).bfloat16(), torch.empty(32, 32)
    _multiply[(1,)](a, b, out, SIZE=32, PRECISION="ieee")
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=0, atol=1e-5)


def test_tf32_has_eleven_bits():
    one, almost = torch.eye(16), torch.full((16, 16), 1 + 2.0**-10 + 2.0**-11)
    for precision, expected in (("tf32", 1 + 2.0**-10), ("ieee", almost[0, 0].item())):
        out = torch.empty(16, 16)
        _multiply[(1,)](almost, one, out, SIZE=16, PRECISION=precision)
        assert (out == expected).all()


@kernel
def _add(x, out):
    tl.store(out, tl.load(x) + tl.load(x))


@kernel
def _compare(x, out):
    tl.store(out, tl.where(tl.load(x) > tl.load(x), 1.0, 0.0))


@kernel
def _negate(x, out):
    tl.store(out, -tl.load(x))


@kernel
def _reduce(x, out):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, 16)), 0))


@kernel
def _size(x, out):
    tl.store(out, tl.abs(tl.load(x)))


@kernel
def _count(x, out):
    tl.store(out, tl.program_id(0).to(tl.bfloat16))


@pytest.mark.parametrize("computes", [_add, _compare, _negate, _reduce, _size, _count])
def test_what_computes_on_bf16_is_refused(computes):
    with pytest.raises(InterpreterError, match="bf16, which is float32"):
        computes[(1,)](torch.ones(16, dtype=torch.bfloat16), torch.zeros(16, dtype=torch.bfloat16))


@kernel
def _move(x, out):
    i = tl.arange(0, 16)
    values = tl.reshape(tl.trans(tl.join(tl.load(x + i), tl.load(x + 15 - i))), [32])
    tl.store(out + tl.arange(0, 32), tl.where(tl.arange(0, 32) < 20, values, 0.0))


def test_what_only_moves_bf16_is_not():
    x, out = torch.randn(16).bfloat16(), torch.empty(32, dtype=torch.bfloat16)
    _move[(1,)](x, out)
    assert torch.equal(out, torch.cat([x, x.flip(0)[:4], torch.zeros(12, dtype=torch.bfloat16)]))


@kernel
def _bound(x, out):
    tl.store(out, tl.maximum(tl.load(x), 2.0))
    tl.store(out + 1, tl.minimum(tl.load(x), 2.0))


def test_maximum_and_minimum_pass_over_what_is_not_a_number():
    out = torch.zeros(2)
    _bound[(1,)](torch.tensor([torch.nan]), out)
    assert out.tolist() == [2, 2]


@kernel
def _shift(x, out, by, step):
    i = tl.program_id(0) * 16 + tl.arange(0, 16)
    tl.store(out + i * step, tl.load(x + i + by))


@kernel
def _in_place(x, again):
    i = tl.arange(0, 16)
    tl.store(x + i, tl.load(x + i) + 1)
    if again:
        tl.store(x + i, tl.load(x + i) + 1)


def test_a_launch_keeps_to_its_tensors_and_its_programs_to_themselves():
    x, out, both = torch.arange(32.0), torch.empty(32), torch.zeros(48)
    _shift[(2,)](x, out, 0, 1)
    assert torch.equal(out, x)
    _shift[(1,)](x[8:], out, -8, 1)  # within the memory of the tensor that it is a part of
    _in_place[(1,)](x, 0)
    assert x[15:17].tolist() == [16, 16]
    odd = torch.frombuffer(bytearray(9), dtype=torch.float32, offset=1, count=2)
    for match, launch in {
        "reads 1 places that are in no tensor": lambda: _shift[(2,)](x, out, 1, 1),
        "writes 16 places that are in no tensor": lambda: _shift[(2,)](x, out, 0, 2),
        "writes a place twice": lambda: _shift[(1,)](x, out, 0, 0),
        "_copy write 32 places once more": lambda: _copy[(2,)](x, out, 32, SIZE=32),
        "_shift read 16 places that others write": lambda: _shift[(2,)](both[16:], both, 0, 1),
        "_in_place read back 16 places": lambda: _in_place[(1,)](x, 1),
        "reads places that are no multiples of 4 bytes": lambda: _copy[(1,)](odd, out, 2, SIZE=2),
        "CUDA takes": lambda: _copy[(1, 65536)](x, out, 32, SIZE=32),
    }.items():
        with pytest.raises((InterpreterError, AssertionError), match=match):
            launch()
