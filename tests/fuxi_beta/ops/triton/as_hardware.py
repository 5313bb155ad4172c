"""Triton's interpreter made to compute as a GPU does, and to refuse what a GPU would trip over.

By itself the interpreter keeps bf16 as the integers of its bits: it adds, compares and multiplies those, and cuts
digits off where a GPU rounds. It reads and writes anywhere in the host's memory, and runs one program after another.
Inside of `as_hardware`

- a float32 becomes the nearest bf16, ties to even, and what is not a number stays one;
- a product of bf16 is the float32 product of the numbers, and TF32 cuts float32 operands to eleven bits;
- maximum and minimum of a number and of what is none are the number;
- anything else that computes on bf16 fails;
- so does a launch if it touches memory that is in none of its tensors, or is not aligned; if its result could depend
  on the order of its programs or threads, as a place is written twice, a program reads what another writes, or reads
  back what it wrote itself; and if its grid is too large.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, ReduceScanOpInterface, TensorHandle

GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)
"""Programs of each axis that CUDA launches."""

MOVES = {
    *("bitcast", "broadcast", "cat", "dot", "expand_dims", "fp_ext", "fp_trunc", "gather", "join", "load", "print"),
    *("masked_load", "masked_store", "reshape", "select", "splat", "split", "store", "trans", "unsplat"),
}
"""What a bf16 may go through: these do not look at it, or are replaced here."""


@contextmanager
def as_hardware() -> Iterator[None]:
    """Within it, kernels that are interpreted compute as on a GPU. See the top of this file."""
    with pytest.MonkeyPatch.context() as patch:
        for name in dir(InterpreterBuilder):
            if name.startswith("create_") and name.removeprefix("create_") not in MOVES:
                patch.setattr(InterpreterBuilder, name, _refuses_bf16(name, getattr(InterpreterBuilder, name)))
        patch.setattr(ReduceScanOpInterface, "check_tensor", _checked_reduction(ReduceScanOpInterface.check_tensor))
        patch.setattr(InterpreterBuilder, "cast_impl", _cast(InterpreterBuilder.cast_impl))
        patch.setattr(InterpreterBuilder, "create_dot", _dot(InterpreterBuilder.create_dot))
        for name, function in {"create_maxnumf": np.fmax, "create_minnumf": np.fmin}.items():
            patch.setattr(InterpreterBuilder, name, _binary(name, function))
        patch.setattr(interpreter, "_patch_lang", _patched_once(interpreter._patch_lang))
        _Launch.watch(patch)
        yield


def _patched_once(member: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter's functions in place of Triton's once a launch: by itself it replaces them at every call of one
    kernel by another, which takes it a quarter of its time."""
    language, launched = SimpleNamespace(__globals__={"tl": tl, "core": tl.core}), []

    class Scope:
        def __init__(self) -> None:
            self.scope = member(language)
            launched.append(self)

        def restore(self) -> None:
            launched.clear()
            self.scope.restore()

    return lambda _: None if launched else Scope()


def rounded_to_bf16(numbers: np.ndarray) -> np.ndarray:
    """The bits of the nearest bf16, as `cvt.rn.bf16.f32` gives them. float32 -> uint16."""
    bits = numbers.view(np.uint32)
    # Adding just below half of the last place carries upwards if more than half is cut off, or half of an odd number.
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(numbers), 0x7FFF, nearest).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    """The numbers that bits of bf16 stand for. uint16 -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _is_bf16(value: Any) -> bool:
    if isinstance(value, TensorHandle):
        value = value.dtype
    return isinstance(value, tl.dtype) and value.scalar == tl.bfloat16


def _refuse(name: str) -> NoReturn:
    raise TypeError(f"{name} computes on bf16, which is float32's work: cast before it and after")


def _refuses_bf16(name: str, member: Callable[..., Any]) -> Callable[..., Any]:
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(_is_bf16(value) for value in (*args, *kwargs.values())):
            _refuse(name)
        return member(self, *args, **kwargs)

    return checked


def _checked_reduction(member: Callable[..., None]) -> Callable[..., None]:
    def check_tensor(self: Any, values: tuple[Any, ...]) -> None:
        member(self, values)
        if any(_is_bf16(value.handle) for value in values):
            _refuse("a reduction or scan")

    return check_tensor


def _cast(member: Callable[..., Any]) -> Callable[..., Any]:
    def cast_impl(self: Any, source: TensorHandle, target: Any) -> TensorHandle:
        kinds = (source.dtype.scalar, target.scalar)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(rounded_to_bf16(np.ascontiguousarray(source.data)), tl.bfloat16)
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(widened(source.data), tl.float32)
        if tl.bfloat16 in kinds:
            _refuse(f"a cast of {kinds[0]} to {kinds[1]}")
        return member(self, source, target)

    return cast_impl


def _dot(member: Callable[..., Any]) -> Callable[..., Any]:
    def operand(value: TensorHandle, precision: Any) -> TensorHandle:
        if _is_bf16(value):
            return TensorHandle(widened(value.data), tl.float32)
        if value.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
            cut = np.ascontiguousarray(value.data).view(np.uint32) & ~np.uint32(0x1FFF)
            return TensorHandle(cut.view(np.float32), tl.float32)
        return value

    def create_dot(self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, precision: Any, *rest: Any) -> Any:
        if _is_bf16(d):
            _refuse("the sum of a product")
        return member(self, operand(a, precision), operand(b, precision), d, precision, *rest)

    return create_dot


def _binary(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return _refuses_bf16(name, lambda self, a, b: self.binary_op(a, b, function))


class _Access(NamedTuple):
    """What a load or a store touches."""

    places: np.ndarray  # uint64
    program: int
    time: int


class _Touched(NamedTuple):
    """Places that loads or stores touch, each with its program and time."""

    places: np.ndarray
    program: np.ndarray
    time: np.ndarray

    @classmethod
    def by(cls, accesses: list[_Access]) -> "_Touched":
        """All that some accesses touch."""
        lengths = [len(access.places) for access in accesses]
        places = np.concatenate([np.zeros(0, np.uint64), *(access.places for access in accesses)])
        programs, times = np.array([access[1:] for access in accesses], np.int64).reshape(-1, 2).T
        return cls(places, np.repeat(programs, lengths), np.repeat(times, lengths))


class _Launch:
    """What the programs of a launch touch."""

    current: "_Launch | None" = None

    def __init__(self, tensors: list[Any]) -> None:
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        self.starts = np.array(sorted(storages), np.uint64)
        self.ends = self.starts + np.array([storages[start] for start in sorted(storages)], np.uint64)
        self.programs: dict[tuple[int, ...], int] = {}
        self.read: list[_Access] = []
        self.written: list[_Access] = []

    @classmethod
    def watch(cls, patch: pytest.MonkeyPatch) -> None:
        """Have every launch of the interpreter checked."""
        call, load = GridExecutor.__call__, InterpreterBuilder.create_masked_load
        store, atomic = InterpreterBuilder.create_masked_store, InterpreterBuilder.create_atomic_rmw

        def launch(self: Any, *args: Any, **kwargs: Any) -> None:
            over = [size for size, limit in zip(self.grid, GRID, strict=False) if size > limit]
            assert not over, f"{self.fn.__name__} is launched with {self.grid}, CUDA takes {GRID}"
            cls.current = cls([value for value in (*args, *kwargs.values()) if hasattr(value, "data_ptr")])
            try:
                call(self, *args, **kwargs)
                cls.current.check_order(self.fn.__name__)
            finally:
                cls.current = None

        def masked_load(self: Any, pointer: TensorHandle, mask: TensorHandle, *rest: Any) -> Any:
            touched("reads", self, pointer, mask)
            return load(self, pointer, mask, *rest)

        def masked_store(self: Any, pointer: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any) -> Any:
            touched("writes", self, pointer, mask)
            return store(self, pointer, value, mask, *rest)

        def atomic_rmw(self: Any, kind: Any, pointer: TensorHandle, value: Any, mask: TensorHandle, *rest: Any) -> Any:
            touched("adds to", self, pointer, mask)
            return atomic(self, kind, pointer, value, mask, *rest)

        def touched(how: str, builder: Any, pointer: TensorHandle, mask: TensorHandle) -> None:
            if cls.current is not None:
                places = pointer.data[np.broadcast_to(mask.data, pointer.data.shape)]
                cls.current.touch(how, places, pointer.get_element_ty(), builder.grid_idx)

        patch.setattr(GridExecutor, "__call__", launch)
        patch.setattr(InterpreterBuilder, "create_masked_load", masked_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", masked_store)
        patch.setattr(InterpreterBuilder, "create_atomic_rmw", atomic_rmw)

    def touch(self, how: str, places: np.ndarray, kind: Any, program: tuple[int, ...]) -> None:
        """Check and note what one access of a program touches."""
        size = np.uint64(max(kind.primitive_bitwidth // 8, 1))
        tensor = np.searchsorted(self.starts, places, side="right") - 1
        inside = (tensor >= 0) & (places + size <= self.ends[tensor])
        assert inside.all(), f"program {program} {how} {np.count_nonzero(~inside)} places that are in no tensor"
        assert not (places % size).any(), f"program {program} {how} places that are no multiples of {size} bytes"
        if how == "writes":
            assert len(np.unique(places)) == len(places), f"program {program} writes a place twice at once"
        if how != "adds to":
            number, time = self.programs.setdefault(program, len(self.programs)), len(self.read) + len(self.written)
            (self.read if how == "reads" else self.written).append(_Access(places, number, time))

    def check_order(self, kernel: str) -> None:
        """Check that the result depends on no order of programs, and within one of no order of threads."""
        written, read = _Touched.by(self.written), _Touched.by(self.read)
        if not len(written.places):
            return
        order = np.argsort(written.places, kind="stable")  # the first write of a place stays the first
        written = _Touched(*(part[order] for part in written))
        at = np.minimum(np.searchsorted(written.places, read.places), len(order) - 1)
        meets, own = written.places[at] == read.places, written.program[at] == read.program
        crossed, back = meets & ~own, meets & own & (written.time[at] < read.time)
        assert not crossed.any(), f"programs of {kernel} read {np.count_nonzero(crossed)} places that others write"
        assert not back.any(), f"programs of {kernel} read back {np.count_nonzero(back)} places that they wrote"
        twice = written.places[1:] == written.places[:-1]
        assert not twice.any(), f"programs of {kernel} write {np.count_nonzero(twice)} places once more"
